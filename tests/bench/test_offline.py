"""Compiler reports of small Triton kernels, for GPUs that are not here."""

import copy
from dataclasses import asdict

import pytest
import triton
import triton.language as tl

from fangyan_bench.harness.offline import (
    ARCHITECTURES,
    SHARED_LIMIT,
    WITHOUT_TENSOR_CORES,
    compile_offline,
    count_by_class,
)
from fangyan_bench.harness.op import OfflineKernel
from fangyan_bench.harness.static import grown_counts, worse_reports


@triton.jit
def product(p_left, p_right, p_out, inner, BLOCK: tl.constexpr):
    """One block of a matrix product."""
    i = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for k in range(0, inner, BLOCK):
        left = tl.load(p_left + i[:, None] * inner + k + i[None, :])
        right = tl.load(p_right + (k + i)[:, None] * BLOCK + i[None, :])
        total = tl.dot(left, right, total)
    tl.store(p_out + i[:, None] * BLOCK + i[None, :], total)


def kernel(block, warps):
    signature = {"p_left": "*bf16", "p_right": "*bf16", "p_out": "*fp32", "inner": "i32"}
    return OfflineKernel("product", product, signature, {"BLOCK": block}, options={"num_warps": warps})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_small_kernel_fits_every_chip(architecture):
    idle = architecture in WITHOUT_TENSOR_CORES
    report = compile_offline(kernel(32 if idle else 64, 4), architecture)
    assert report.spills == 0
    assert 16 <= report.registers <= 255
    assert 0 < report.shared <= SHARED_LIMIT[architecture]
    mix = report.instructions
    assert "tensor core" not in mix if idle else mix["tensor core"] >= 4
    assert mix["global load"] >= 1
    assert mix["global store"] >= 1
    assert mix["total"] == sum(count for kind, count in mix.items() if kind != "total")


def test_instructions_are_counted_by_what_they_do():
    opcodes = [
        "LDG.E.128",
        "LDG",
        "LDGSTS.E.BYPASS.128",
        "LDGDEPBAR",
        "UTMALDG.2D",
        "HMMA.16816.F32",
        "STL.64",
    ]
    mix = {"total": 7, "global load": 4, "local memory": 1, "other": 1, "tensor core": 1}
    assert count_by_class(opcodes) == mix
    assert count_by_class(["buffer_load_dwordx4", "global_load_ushort"]) == {"total": 2, "global load": 2}


def test_too_large_a_block_spills():
    report = compile_offline(kernel(128, 1), "sm_80")
    assert report.spills > 0
    assert report.instructions["local memory"] > 0


def test_a_worse_kernel_is_told_from_the_committed_one():
    good, bad = (
        asdict(compile_offline(kernel(block, warps), "sm_80")) for block, warps in ((64, 4), (128, 1))
    )
    name = "op/product/sm_80"
    assert worse_reports({name: good}, {name: good}) == []
    complaints = worse_reports({name: good}, {name: bad})
    assert any("bytes spilled" in complaint for complaint in complaints)
    assert any("instructions" in complaint for complaint in complaints)
    assert worse_reports({}, {name: good}) == [f"{name}: no report is committed"]
    without = copy.deepcopy(good)
    del without["instructions"]["tensor core"]
    assert any("no tensor-core" in complaint for complaint in worse_reports({name: good}, {name: without}))
    heavy = good | {"shared": 200 << 10}
    assert any("the chip has" in complaint for complaint in worse_reports({name: heavy}, {name: heavy}))


def test_grown_instruction_counts():
    assert grown_counts({"a": 1000}, {"a": 1010}) == []
    assert grown_counts({"a": 1000}, {"a": 1100}) == ["a: 1,100 instructions, 1.10x the committed 1,000"]
    assert grown_counts({}, {"a": 5}) == ["a: 5 instructions, none committed"]
