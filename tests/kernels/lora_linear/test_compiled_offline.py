"""The Triton kernels compiled for GPUs that are not here: what they need is there, and nothing spills."""

import pytest
import triton_here

from harness.offline import ARCHITECTURES, SHARED_LIMIT, compile_offline
from harness.registry import op_called
from ops.lora_linear import TAILS, tail

if triton_here.INTERPRETED:
    pytest.skip("an interpreter compiles nothing", allow_module_level=True)

KERNELS = op_called("lora_linear").kernels


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_every_architecture(kernel, architecture):
    report = compile_offline(kernel, architecture)
    assert report.spills == 0
    assert report.shared <= SHARED_LIMIT[architecture]
    assert report.instructions["tensor core"] > 0


@pytest.mark.parametrize("rank", [64, 256])
@pytest.mark.parametrize("kernel", TAILS, ids=lambda kernel: kernel.fn.__name__)
def test_large_ranks(kernel, rank):
    """On the chip with the least memory."""
    report = compile_offline(tail(kernel, rank), "sm_86")
    assert report.shared <= SHARED_LIMIT["sm_86"]
    assert report.spills == 0
