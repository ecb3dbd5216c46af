"""What linear cross-entropy refuses, and how it says so."""

import pytest
import torch
import triton_here
from cross_entropy_cases import (
    IGNORE,
    MAX_CLASSES,
    implementations,
    make,
)
from fangyan_kernels import linear_cross_entropy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(3, 8, dtype=torch.int64)}, "input is torch.int64"),
        ({"linear_weight": torch.zeros(5, 9)}, r"expected shape \(C, 8\)"),
        ({"linear_weight": torch.zeros(5, 8, dtype=torch.float64)}, "expected input's torch.float32"),
        ({"target": torch.zeros(4, dtype=torch.int64)}, r"expected int64 of shape \(3,\)"),
        ({"target": torch.tensor([0, 5, 1])}, r"target holds 5, expected a class in \[0, 5\)"),
        ({"target": torch.tensor([0, -1, 1])}, "target holds -1"),
        ({"target": torch.zeros(3, dtype=torch.int64, device="meta")}, "target is on meta, expected"),
        ({"linear_bias": torch.zeros(4)}, r"linear_bias is .* expected shape \(5,\)"),
        ({"linear_bias": torch.zeros(5, dtype=torch.float64)}, "linear_bias is torch.float64, expected"),
        ({"weight": torch.zeros(4)}, r"weight is .* expected shape \(5,\)"),
        ({"weight": torch.zeros(5, requires_grad=True)}, "weight requires a gradient"),
        ({"token_weight": torch.zeros(4)}, r"token_weight is .* expected shape \(3,\)"),
        ({"reduction": "total"}, "reduction is 'total'"),
        ({"label_smoothing": 1.5}, r"label_smoothing is 1.5, expected a number in \[0, 1\]"),
        ({"z_loss": -1.0}, "z_loss is -1.0, expected 0 or more"),
        ({"logit_scale": float("nan")}, "logit_scale is nan, expected a finite number"),
        ({"softcap": 0.0}, "softcap is 0.0, expected None or more than 0"),
        ({"divisor": 2.0, "reduction": "sum"}, "divisor is given with reduction='sum', expected 'mean'"),
        ({"divisor": torch.ones(2)}, "divisor is .* expected one number"),
        ({"gradient_filter": 1.0}, r"gradient_filter is 1.0, expected a number in \[0, 1\)"),
        ({"max_valid": -1}, "max_valid is -1, expected None, 0 or more"),
        ({"impl": "cuda"}, "impl is 'cuda'"),
        (
            {"impl": "triton"},
            r"takes float32, bfloat16 and float16 on cuda, input is torch.float32 of shape \(3, 8\) on cpu",
        ),
    ],
)
def test_linear_cross_entropy_refuses_bad_arguments(change, message):
    arguments = {
        "input": torch.zeros(3, 8),
        "linear_weight": torch.zeros(5, 8),
        "target": torch.zeros(3).long(),
    }
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**(arguments | change))


def test_linear_cross_entropy_cpp_refuses_float64():
    with pytest.raises(ValueError, match="impl='cpp' takes float32, bfloat16 and float16 on cpu"):
        linear_cross_entropy(*torch.zeros(2, 3, 8, dtype=torch.float64), torch.zeros(3).long(), impl="cpp")


@implementations("triton_small_vocab")
@pytest.mark.parametrize("dtype", MAX_CLASSES, ids=str)
def test_linear_cross_entropy_triton_small_vocab_refuses_many_classes(impl, dtype):
    input, weight, target = (torch.zeros(size, device=triton_here.DEVICE) for size in ((3, 8), (40, 8), 3))
    message = f"takes {MAX_CLASSES[dtype]} classes of {dtype} at most, linear_weight has 40"
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(input.to(dtype), weight.to(dtype), target.long(), impl=impl)


def heed_assertions(monkeypatch):
    """The interpreter, which skips assertions, then raises what a GPU says of one that fails."""
    from triton.runtime.interpreter import InterpreterOptions, interpreter_builder

    options = InterpreterOptions(debug=True, sanitize_overflow=False)
    monkeypatch.setattr(interpreter_builder, "options", options)


@implementations("triton_small_vocab", "triton_large_vocab")
@pytest.mark.parametrize("wrong", [-1, 12], ids=str)
def test_linear_cross_entropy_reports_a_target_that_is_no_class(impl, wrong, monkeypatch):
    if not triton_here.INTERPRETED:
        pytest.skip("on a GPU a failed assertion ends the process's use of it")
    heed_assertions(monkeypatch)
    input, weight, _, target = make(impl, 40, 16, 12)
    variant = impl.removeprefix("triton_")
    options = ("mean", IGNORE, 0.0, 0.0, 1.0, 0.0, 0.0, None, variant, False, False, False, False)
    arguments = (input, weight, None, target, None, None, torch.tensor(3.0, device=input.device), *options)
    torch.ops.fangyan.linear_cross_entropy(*arguments)
    target[17] = wrong
    with pytest.raises(Exception, match="a target is no class"):
        torch.ops.fangyan.linear_cross_entropy(*arguments)


@implementations("triton_small_vocab", "triton_large_vocab")
def test_linear_cross_entropy_reports_valid_targets_beyond_max_valid(impl, monkeypatch):
    """Instead of a loss without them. The interpreter raises what a GPU's assertion says."""
    if not triton_here.INTERPRETED:
        pytest.skip("on a GPU a failed assertion ends the process's use of it")
    heed_assertions(monkeypatch)
    input, weight, _, target = make(impl, 40, 16, 12, ignored=0.5)
    labelled = int((target != IGNORE).sum())
    linear_cross_entropy(input, weight, target, impl=impl, max_valid=labelled)
    with pytest.raises(Exception, match="max_valid"):
        linear_cross_entropy(input, weight, target, impl=impl, max_valid=labelled - 1)


def test_linear_cross_entropy_operator_checks_targets():
    options = ("sum", IGNORE, 0.0, 0.0, 1.0, 0.0, 0.0, None, "auto", False, False, False, False)
    with pytest.raises(RuntimeError, match=r"target\[1\] is 9, expected a class in \[0, 5\)"):
        torch.ops.fangyan.linear_cross_entropy(
            torch.zeros(2, 8), torch.zeros(5, 8), None, torch.tensor([0, 9]), None, None, None, *options
        )


@pytest.mark.skipif(triton_here.INTERPRETED, reason="an interpreter compiles nothing")
def test_sum_target_weights_kernel_of_triton_asserts_targets():
    """The kernel that reads all targets first has an assertion compiled into it, whatever the environment."""
    import triton
    from fangyan_kernels.linear_cross_entropy.triton_shared import sum_target_weights_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    assert sum_target_weights_kernel.debug
    kinds = {"tokens": "i32", "classes": "i32", "ignore_index": "i32", "p_target": "*i64"}
    constants = {"HAS_CLASS_WEIGHT": False, "HAS_TOKEN_WEIGHT": False, "BLOCK": 1024}
    names = sum_target_weights_kernel.arg_names
    signature = {name: "constexpr" if name in constants else kinds.get(name, "*fp32") for name in names}
    source = ASTSource(
        sum_target_weights_kernel, signature, {(names.index(k),): v for k, v in constants.items()}
    )
    ptx = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"debug": True}).asm["ptx"]
    assert "__assertfail" in ptx
    assert "a target is no class" in bytes(map(int, _numbers(ptx))).decode(errors="replace")


def _numbers(ptx):
    """The bytes of the constants, in which a message is spelled."""
    import re

    return [
        number for line in re.findall(r"\.b8 \w+\[\d+\] = \{([\d, ]+)\}", ptx) for number in line.split(",")
    ]
