"""Schema, fake and autograd formula of every operator: the contract between Python and kernels.

The CPU kernels behind these schemas are C++ (``csrc/``, in the extension ``_C``).

Shape suffixes: T tokens, H hidden, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fangyan_kernels import _C  # noqa: F401  (importing it registers the CPU kernels)

torch.library.define(
    "fangyan::linear_cross_entropy_forward",
    "(Tensor input_TH, Tensor weight_CH, Tensor? bias_C, Tensor target_T, int ignore_index,"
    " float label_smoothing) -> Tensor",
)


@torch.library.register_fake("fangyan::linear_cross_entropy_forward")
def _linear_cross_entropy_fake(
    input_TH: Tensor,
    weight_CH: Tensor,
    bias_C: Tensor | None,
    target_T: Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    return input_TH.new_empty(input_TH.shape[0])


def _linear_cross_entropy_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input_TH, weight_CH, bias_C, target_T, ctx.ignore_index, ctx.label_smoothing = inputs
    ctx.save_for_backward(input_TH, weight_CH, bias_C, target_T)


def _linear_cross_entropy_backward(ctx: Any, grad_loss_T: Tensor) -> tuple[Tensor | None, ...]:
    """d loss_t / d logits_tc = softmax_tc - (1 - eps) [c = target_t] - eps / C; 0 on ignored rows."""
    input_TH, weight_CH, bias_C, target_T = ctx.saved_tensors
    classes = weight_CH.shape[0]
    valid_T = target_T != ctx.ignore_index
    grad_TC = torch.nn.functional.linear(input_TH, weight_CH, bias_C).softmax(1)
    grad_TC -= ctx.label_smoothing / classes
    hit_T1 = torch.where(valid_T, target_T, 0)[:, None]
    grad_TC.scatter_add_(1, hit_T1, grad_TC.new_full(hit_T1.shape, ctx.label_smoothing - 1.0))
    # Not a product with zero: the logits of an ignored row may be inf or NaN, its gradient is 0.
    grad_TC.mul_(grad_loss_T[:, None]).masked_fill_(~valid_T[:, None], 0.0)
    need_input, need_weight, need_bias = ctx.needs_input_grad[:3]
    return (
        grad_TC @ weight_CH if need_input else None,
        grad_TC.T @ input_TH if need_weight else None,
        grad_TC.sum(0) if need_bias else None,
        None,
        None,
        None,
    )


torch.library.register_autograd(
    "fangyan::linear_cross_entropy_forward",
    _linear_cross_entropy_backward,
    setup_context=_linear_cross_entropy_setup,
)
