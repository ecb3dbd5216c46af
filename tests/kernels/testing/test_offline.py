"""Compiler reports of small Triton kernels, for GPUs that are not here."""

import pytest
import triton
import triton.language as tl
from fangyan_kernels.testing.offline import (
    ARCHITECTURES,
    SHARED_LIMIT,
    WITHOUT_TENSOR_CORES,
    OfflineKernel,
    compile_offline,
    count_by_class,
)


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


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compile_offline_on_every_architecture(architecture):
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


def test_count_by_class():
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


@pytest.mark.slow
def test_compile_offline_reports_spills_of_a_large_block():
    report = compile_offline(kernel(128, 1), "sm_80")
    assert report.spills > 0
    assert report.instructions["local memory"] > 0
