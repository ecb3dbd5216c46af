"""A peer of the benchmarks: right in values, and for Hopper what its docstring says of its machine code."""

import gluon_here
import pytest
import torch
import triton_here
from fangyan_kernels.testing.launches import record_launches
from fangyan_kernels.testing.offline import SHARED_LIMIT, OfflineKernel, compile_offline

from fangyan_bench.harness.check import WrongValues, check, expected
from fangyan_bench.harness.op import Shape
from fangyan_bench.peers import k_step
from fangyan_bench.registry import find_op

OP = find_op("lora_linear")
# Tiles that end within and at the tensors' edges; more tiles than programs; more steps than stages; ranks of
# one short step, and of two.
SHAPES = [(300, 200, 600, 16), (1, 64, 64, 8), (129, 72, 264, 72), (256, 512, 256, 40)]
simulated = pytest.mark.skipif(triton_here.DEVICE == "cuda", reason="a GPU is here")


@pytest.fixture
def device(monkeypatch):
    if triton_here.DEVICE == "cuda":
        if k_step.missing("cuda"):
            pytest.skip(k_step.missing("cuda"))
        return "cuda"
    gluon_here.simulate(monkeypatch, k_step)
    monkeypatch.setattr(k_step, "_multiprocessors", lambda _device: 3)
    return "cpu"


def check_implementation(device, sizes, dtype):
    shape = Shape("k-step", dict(zip("TKNR", sizes, strict=True), P=0), device, dtype)
    check(OP.implementation("K step"), expected(OP, shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sizes", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_k_step_values_and_gradients(device, sizes, dtype):
    check_implementation(device, sizes, dtype)


def late(monkeypatch):
    """Results are overwritten before they are written out."""
    monkeypatch.setattr(k_step.tma, "store_wait", lambda _pendings: None)


def unwaited(monkeypatch):
    """Operands are read before they have been loaded."""
    monkeypatch.setattr(k_step.mbarrier, "wait", lambda _barrier, _phase: None)


def early(monkeypatch):
    """A stage is given back while the product that reads it is under way."""
    arrive = k_step.mbarrier.arrive
    monkeypatch.setattr(k_step.mbarrier, "arrive", lambda barrier, **_: arrive(barrier, True))


@simulated
@pytest.mark.parametrize("fault", [late, unwaited, early], ids=lambda fault: fault.__name__)
def test_simulation_finds_a_fault(fault, device, monkeypatch):
    monkeypatch.setattr(gluon_here, "PATIENCE", 1.0)
    fault(monkeypatch)
    with pytest.raises((WrongValues, AssertionError)):
        check_implementation(device, SHAPES[0], torch.bfloat16)


@simulated
def test_missing_without_hopper():
    assert k_step.missing("cpu") == "its kernel is made of Hopper's wgmma and TMA"


@pytest.mark.skipif(triton_here.INTERPRETED, reason="an interpreter compiles nothing")
def test_k_step_launches(monkeypatch):
    """Two per call, and one variant each however many tokens there are."""
    monkeypatch.setattr(k_step, "_multiprocessors", lambda _device: 132)
    with record_launches() as launches:
        for tokens in (1, 48, 200):
            sizes = (tokens, 64), (128, 64), (16, 64), (128, 16)
            x, weight, a, b = (torch.randn(size, dtype=torch.bfloat16) for size in sizes)
            k_step.KStep.apply(x.requires_grad_(), weight, a, b, 2.0).sum().backward()
    assert launches.launched == 6 * ["product"]
    assert launches.variants == 2 * ["product"]


@pytest.mark.skipif(triton_here.INTERPRETED, reason="an interpreter compiles nothing")
@pytest.mark.parametrize("block_r", [16, 64])
@pytest.mark.parametrize("transposed", [True, False])
def test_k_step_compiled_for_hopper(transposed, block_r):
    def operand(*block):
        return f"tensordesc<bf16{list(block)},{k_step.LAYOUT!r}>"

    right = operand(256, 64) if transposed else operand(64, 256)
    types = [operand(64, 64), right, operand(64, 64), right, operand(64, 128)]
    signature = dict(zip(("left", "right", "low", "tail", "out"), types, strict=True))
    constants = {"TRANSPOSED": transposed, "BLOCK_R": block_r}
    kernel = OfflineKernel("k-step", k_step.product, signature, constants, options=k_step.LAUNCH)
    report = compile_offline(kernel, "sm_90")
    assert report.spills == 0
    assert report.registers == 168  # of each of 12 warps, before the producer's go to the others
    assert report.shared <= SHARED_LIMIT["sm_90"]
    assert [4, 256 * 64 * 2] in report.stages  # of the right operand
    assert [8, 64 * 64 * 2] in report.stages  # of the left, in halves
    # wgmmas of a step and of the last one, for each warpgroup: all are m64n256k16, or there would be more.
    assert report.instructions["tensor core"] == 2 * (4 + block_r // 16)
    # Everything by TMA, which wants boxes of at most 64 columns: for x and W, and for the factors.
    assert report.loads == {"tile": 2 * (2 + (1 if transposed else 4))}
    assert report.stores == {"tile": 2 * 2}  # of both halves of columns, by each warpgroup
