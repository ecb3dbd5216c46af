"""The Triton kernels compiled for GPUs that are not here: what they need is there, and nothing spills."""

import pytest
import triton_here

from harness.offline import ARCHITECTURES, SHARED_LIMIT, compile_offline
from harness.registry import op_called

if triton_here.INTERPRETED:
    pytest.skip("an interpreter compiles nothing", allow_module_level=True)

KERNELS = {kernel.name: kernel for kernel in op_called("linear_cross_entropy").kernels}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", KERNELS)
def test_every_architecture(name, architecture):
    report = compile_offline(KERNELS[name], architecture)
    assert report.shared <= SHARED_LIMIT[architecture]
    if name != "vocabulary":  # its products are cuBLAS'
        assert report.instructions["tensor core"] > 0
    if architecture != "gfx942":  # where 188 classes spill: it builds, and is not tuned
        assert report.spills == 0
        assert report.instructions.get("local memory", 0) == 0


def test_every_configuration_keeps_its_registers():
    """Whatever the number of classes, in both sizes of a number, on the smallest of the chips."""
    from fangyan_kernels.linear_cross_entropy import triton_tags

    from ops.linear_cross_entropy import tags_kernel

    for size, by_classes in triton_tags.CONFIGS.items():
        for classes in by_classes:
            report = compile_offline(tags_kernel(classes, size), "sm_86")
            assert report.spills == 0, f"{classes} classes of {size} bytes: {report}"
            assert report.shared <= SHARED_LIMIT["sm_86"]
