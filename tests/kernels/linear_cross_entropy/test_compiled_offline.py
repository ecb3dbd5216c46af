"""The Triton kernels compiled for GPUs that are not here: what they need is there, and nothing spills."""

from dataclasses import replace

import pytest
import triton_here

from harness.offline import ARCHITECTURES, SHARED_LIMIT, compile_offline
from harness.op import OfflineKernel
from harness.registry import op_called

if triton_here.INTERPRETED:
    pytest.skip("an interpreter compiles nothing", allow_module_level=True)

KERNELS = {kernel.name: kernel for kernel in op_called("linear_cross_entropy").kernels}
OPTIONS = ("HAS_CLASS_WEIGHT", "HAS_TOKEN_WEIGHT", "HAS_SMOOTHING", "HAS_SOFTCAP", "PREDICT", "LOSS_T")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", ["tags-C188", "vocabulary"])
def test_every_architecture(name, architecture):
    report = compile_offline(KERNELS[name], architecture)
    assert report.shared <= SHARED_LIMIT[architecture]
    if name != "vocabulary":  # its products are cuBLAS'
        assert report.instructions["tensor core"] > 0
    if architecture != "gfx942":  # where 188 classes spill: it builds, and is not tuned
        assert report.spills == 0
        assert report.instructions.get("local memory", 0) == 0


def test_every_configuration_keeps_its_registers():
    """Whatever the number of classes, in both sizes of a number, on the chip with the least memory."""
    from fangyan_kernels.linear_cross_entropy import triton_tags

    from ops.linear_cross_entropy import tags_kernel

    for size, by_classes in triton_tags.CONFIGS.items():
        for classes in by_classes:
            report = compile_offline(tags_kernel(classes, size), "sm_86")
            assert report.spills == 0, f"{classes} classes of {size} bytes: {report}"
            assert report.shared <= SHARED_LIMIT["sm_86"]


@pytest.mark.parametrize("name", ["tags-C9", "vocabulary"])
def test_every_option_at_once_compiles(name):
    """An interpreter takes what a compiler refuses, such as a variable of two types."""
    kernel = KERNELS[name]
    constants = {key: key in OPTIONS or value for key, value in kernel.constants.items()}
    constants |= {"GIVEN": True} | ({"PACKED": False} if name == "vocabulary" else {})
    signature = kernel.signature | {"p_token": "*i64"} if name == "vocabulary" else kernel.signature
    compile_offline(replace(kernel, constants=constants, signature=signature, multiples=()), "sm_80")


@pytest.mark.parametrize("name", ["add_totals", "finish", "scale_three"])
def test_small_kernels_compile(name):
    from fangyan_kernels.linear_cross_entropy import triton_shared, triton_tags

    function = getattr(triton_tags if name == "finish" else triton_shared, name)
    constants = {"REDUCE": True, "GIVEN": False, "GRAD_WEIGHT": True, "GRAD_BIAS": True}
    constants |= {"PARTS": triton_shared.PARTS, "BLOCK": 512}
    constants = {key: value for key, value in constants.items() if key in function.arg_names}
    integers = {"p_target": "*i64", "p_labelled": "*i64", "p_correct": "*i64", "p_counts": "*i32"}
    integers |= {"p_labelled_total": "*i64", "p_correct_total": "*i64"}
    if name == "add_totals":
        integers["p_correct"] = "*i8"
    arguments = [argument for argument in function.arg_names if argument not in constants]
    signature = {a: integers.get(a, "*fp32" if a.startswith("p_") else "i32") for a in arguments}
    report = compile_offline(OfflineKernel(name, function, signature, constants), "sm_80")
    assert report.spills == 0
