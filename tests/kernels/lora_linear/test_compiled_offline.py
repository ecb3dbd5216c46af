"""The Triton kernels compiled for GPUs that are not here: what bounds them is as it was designed."""

from dataclasses import replace

import pytest
import torch
import triton_here
from fangyan_kernels import lora_linear
from fangyan_kernels.lora_linear import triton_launches
from fangyan_kernels.lora_linear.launch import MAX_RANK_IN_ONE_PASS
from fangyan_kernels.lora_linear.triton_launches import PROGRAMS
from fangyan_kernels.testing.launches import record_launches
from fangyan_kernels.testing.lora_kernels import low_rank_kernels, merge_kernel
from fangyan_kernels.testing.offline import ARCHITECTURES, SHARED_LIMIT, compile_offline

if triton_here.INTERPRETED:
    pytest.skip("an interpreter compiles nothing", allow_module_level=True)

ALL = {**low_rank_kernels(), "lora-merge": merge_kernel()}
PROCESSORS = 132  # multiprocessors of an H100
# What one of them has to have under way: 3 TB/s for the 0.9 us that a load takes.
IN_FLIGHT = 20 << 10


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", [name for name in ALL if name != "lora-reduce"])
def test_low_rank_kernels_on_every_architecture(name, architecture):
    """Triton has no products on Turing's tensor cores: there tiles are smaller."""
    turing = architecture == "sm_75"
    kernel = low_rank_kernels(tensor_cores=False).get(name, ALL[name]) if turing else ALL[name]
    report = compile_offline(kernel, architecture)
    assert report.spills == 0
    assert report.shared <= SHARED_LIMIT[architecture]
    assert report.instructions.get("tensor core", 0) > 0 or turing


@pytest.mark.slow
@pytest.mark.parametrize("rank", [64, 256])
@pytest.mark.parametrize("architecture", ["sm_75", "sm_86"])
@pytest.mark.parametrize("name", ["lora-shrink", "lora-expand", "lora-outer"])
def test_low_rank_kernels_of_large_ranks(name, architecture, rank):
    """On the chips with the least memory."""
    report = compile_offline(low_rank_kernels(rank, tensor_cores=architecture != "sm_75")[name], architecture)
    assert report.shared <= SHARED_LIMIT[architecture]
    assert report.spills == 0


@pytest.mark.slow
@pytest.mark.parametrize("rank", [16, 64])
@pytest.mark.parametrize("name", low_rank_kernels())
def test_low_rank_kernels_in_float32(name, rank):
    """Without tensor cores, too; its gradient's two products are made in one pass at small ranks alone."""
    if rank > MAX_RANK_IN_ONE_PASS and name == "lora-outer-gradient":
        return
    kernel = low_rank_kernels(rank, tensor_cores=False)[name]
    signature = {name: "*fp32" if kind == "*bf16" else kind for name, kind in kernel.signature.items()}
    assert compile_offline(replace(kernel, signature=signature), "sm_90").spills == 0


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("name", ["lora-shrink", "lora-outer", "lora-outer-gradient"])
def test_low_rank_kernels_keep_enough_bytes_in_flight(name, drops):
    """Copies of the large matrix alone, at 8,192 tokens; dropout does not make the pipeline shallow."""
    kernel = low_rank_kernels(drops=drops)[name]
    report = compile_offline(kernel, "sm_90")
    tile = 2 * kernel.constants["BLOCK_T"] * kernel.constants["BLOCK_K"]
    (depth,) = (depth for depth, size in report.stages if size == tile)
    programs = PROGRAMS if "outer" in name else 8192 // kernel.constants["BLOCK_T"] // PROCESSORS
    assert report.programs_per_sm >= programs
    assert depth * tile * programs >= IN_FLIGHT
    # The copies; the rest are the seed's words and the accesses of R numbers per token.
    assert report.loads["16"] >= 2 * tile // (16 * 32 * kernel.options["num_warps"])


@pytest.mark.parametrize("name", ["lora-expand-output", "lora-expand"])
def test_expand_stores_16_bytes_per_access(name):
    kernel = ALL[name]
    report = compile_offline(kernel, "sm_90")
    tile = 2 * kernel.constants["BLOCK_T"] * kernel.constants["BLOCK_K"]
    assert report.stores["16"] == tile // (16 * 32 * kernel.options["num_warps"])
    assert report.programs_per_sm >= 6


def test_merge_reads_every_byte_once():
    """Before, it took 24.7 instructions and 2.5 loads per number: every byte twice, a scale for each."""
    kernel = merge_kernel()
    report = compile_offline(kernel, "sm_90")
    threads = 32 * kernel.options["num_warps"]
    numbers = kernel.constants["BLOCK_N"] * kernel.constants["BLOCK_K"] / threads
    assert report.instructions["total"] / numbers <= 17.5
    assert report.instructions["global load"] / numbers <= 0.4
    assert report.stores == {"16": 2 * numbers / 16}
    assert report.programs_per_sm >= 5


@pytest.mark.parametrize("rank", [1, 8, 16, 64, 256])
@pytest.mark.parametrize("inner", [256, 768, 4096, 8192])
def test_partition_bounds_partial_sums(rank, inner, monkeypatch):
    monkeypatch.setattr(triton_launches, "_multiprocessors", lambda _: PROCESSORS)
    block_t, block_k = (triton_launches.tiles("outer_product", rank)[name] for name in ("BLOCK_T", "BLOCK_K"))
    strips = -(-inner // block_k)
    for tokens in (4 * rank, 1000, 2048, 8192):
        length, parts = triton_launches._partition(tokens, strips, rank, block_t, torch.device("cuda"))
        assert length * (parts - 1) < tokens <= length * parts
        assert length % block_t == 0
        sums, matrix = 4 * parts * rank * inner, 2 * tokens * inner
        assert parts == 1 or sums <= matrix / 2
        if rank <= MAX_RANK_IN_ONE_PASS:
            assert 4 * strips * tokens * rank <= 2 * tokens * max(inner, 256) / 4
        assert tokens < 8192 or rank > 64 or inner < 4096 or strips * parts >= 2 * PROCESSORS


def test_lora_linear_launches_and_variants():
    """A layer's whole step; batches of any size, any seed and any rate of dropout compile nothing more."""
    weight, a, b = (torch.randn(size).bfloat16() for size in ((64, 48), (16, 48), (64, 16)))
    a.requires_grad_()
    b.requires_grad_()

    def step(tokens, dropout):
        x = torch.randn(tokens, 48).bfloat16().requires_grad_()
        lora_linear(x, weight, a, b, dropout=dropout, impl="triton").sum().backward()
        lora_linear(x, weight, a, b, dropout=dropout, impl="triton").sum().backward()

    with record_launches() as launches:
        step(64, 0.1)
        each = ["shrink", "expand", "outer_product", "expand", "outer_product", "reduce_partials"]
        assert launches.launched == 2 * each
        assert len(launches.variants) == len(each)
        for tokens, dropout in ((1, 0.1), (16, 0.5), (37, 0.9), (1000, 0.6)):
            step(tokens, dropout)
        assert len(launches.variants) == len(each)
