"""A linear head and its softmax cross-entropy as one op.

Shape suffixes: T tokens, H hidden, C classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fangyan_kernels.linear_cross_entropy import reference

__all__ = ["linear_cross_entropy"]

Implementation = Literal["auto", "reference", "cpp"]
_IMPLEMENTATIONS = ("auto", "reference", "cpp")
_REDUCTIONS = ("none", "mean", "sum")


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Literal["none", "mean", "sum"] = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    impl: Implementation = "auto",
) -> Tensor:
    """``cross_entropy(linear(input, linear_weight, linear_bias), target)``.

    The signature and meaning are those of :func:`torch.nn.functional.linear_cross_entropy`, but
    for one case: when no target counts, ``mean`` is a zero connected to the graph, not NaN.

    Args:
        input: hidden states, ``(..., H)``, floating point.
        linear_weight: the head's weight, ``(C, H)``, dtype of ``input``.
        target: class indices in [0, C) or ``ignore_index``, ``(...)``, int64.
        linear_bias: the head's bias, ``(C,)``.
        weight: a factor a class, ``(C,)``; ``mean`` then divides by the sum of the targets' factors.
        reduction: ``none`` gives a loss a token, ``(...)``; ``sum`` and ``mean`` a scalar.
        ignore_index: targets equal to it give no loss and no gradient.
        label_smoothing: in [0, 1]; mixes the target with a uniform distribution
            (Szegedy et al. 2015, arXiv 1512.00567).
        impl: ``reference`` (PyTorch, any device), ``cpp`` (CPU, float32, no class weights) or
            ``auto``. A named implementation that cannot run raises.

    Returns:
        The loss, in float32 (float64 for float64 input).

    Raises:
        ValueError: naming the argument, what was found and what was expected.
    """
    _validate(input, linear_weight, target, linear_bias, weight, reduction, ignore_index, label_smoothing)
    if impl not in _IMPLEMENTATIONS:
        raise ValueError(f"impl is {impl!r}, expected one of {', '.join(_IMPLEMENTATIONS)}")
    input_TH = input.reshape(-1, input.shape[-1])
    target_T = target.reshape(-1)
    if impl == "cpp":
        _require_cpp(input, weight)
        loss_T = torch.ops.fangyan.linear_cross_entropy_forward(
            input_TH, linear_weight, linear_bias, target_T, ignore_index, label_smoothing
        )
    else:
        loss_T = reference.linear_cross_entropy(
            input_TH,
            linear_weight,
            target_T,
            linear_bias=linear_bias,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
        )
    if reduction == "none":
        return loss_T.reshape(target.shape)
    if reduction == "sum":
        return loss_T.sum()
    return loss_T.sum() / _total_weight(target_T, weight, ignore_index, loss_T.dtype)


def _total_weight(target_T: Tensor, weight: Tensor | None, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """What ``mean`` divides by; 1 where it would be 0, so that no loss is 0 and not NaN."""
    valid_T = target_T != ignore_index
    if weight is None:
        return valid_T.sum().clamp(min=1).to(dtype)
    factor_T = weight.to(dtype)[torch.where(valid_T, target_T, 0)]
    total = torch.where(valid_T, factor_T, 0.0).sum()
    return torch.where(total == 0, torch.ones_like(total), total)


def _validate(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> None:
    if not input.is_floating_point() or input.ndim == 0:
        raise ValueError(f"input is {_describe(input)}, expected floating point of shape (..., H)")
    hidden = input.shape[-1]
    if linear_weight.ndim != 2 or linear_weight.shape[1] != hidden:
        raise ValueError(f"linear_weight is {_describe(linear_weight)}, expected shape (C, {hidden})")
    if linear_weight.dtype != input.dtype:
        raise ValueError(f"linear_weight is {linear_weight.dtype}, expected input's {input.dtype}")
    classes = linear_weight.shape[0]
    if target.dtype != torch.int64 or target.shape != input.shape[:-1]:
        raise ValueError(f"target is {_describe(target)}, expected int64 of shape {tuple(input.shape[:-1])}")
    if linear_bias is not None and linear_bias.dtype != input.dtype:
        raise ValueError(f"linear_bias is {linear_bias.dtype}, expected input's {input.dtype}")
    for name, value in (("linear_bias", linear_bias), ("weight", weight)):
        if value is not None and value.shape != (classes,):
            raise ValueError(f"{name} is {_describe(value)}, expected shape ({classes},)")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}, expected one of {', '.join(_REDUCTIONS)}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}, expected a number in [0, 1]")
    # Reading the targets would break a compiled graph and stall a GPU; their kernels check there.
    if target.device.type == "cpu" and not torch.compiler.is_compiling():
        bad = (target != ignore_index) & ((target < 0) | (target >= classes))
        if bool(bad.any()):
            raise ValueError(
                f"target holds {int(target[bad][0])}, expected a class in [0, {classes}) "
                f"or ignore_index {ignore_index}"
            )


def _require_cpp(input: Tensor, weight: Tensor | None) -> None:
    if input.device.type != "cpu" or input.dtype != torch.float32:
        raise ValueError(f"impl='cpp' takes float32 on the CPU, input is {input.dtype} on {input.device}")
    if weight is not None:
        raise ValueError("impl='cpp' takes no class weights, weight is given; expected None")


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"
