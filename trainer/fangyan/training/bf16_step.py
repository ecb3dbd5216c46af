"""AdamW's step of a bfloat16 model on the CPU, with float32 master weights, in one pass.

DeepSpeed's own takes seven: it looks for infinities twice, sums squares, widens the gradients, scales them,
steps, and copies the weights. Here gradients are read as they are, once for their norm and once for the step,
which also writes the bfloat16 weights.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import fangyan_kernels  # noqa: F401  (registers the operators)
import torch
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from torch import Tensor


def use_one_pass(wrapper: Any, optimizer: torch.optim.Optimizer) -> None:
    """Replace the step of DeepSpeed's wrapper at ZeRO stage 0; its weights, states and checkpoints stay.

    Other wrappers, other optimizers and weights elsewhere are left as they are.
    """
    if type(wrapper) is not FP16_UnfusedOptimizer or type(optimizer) is not torch.optim.AdamW:
        return
    weights = [weight for group in wrapper.fp16_groups for weight in group]
    bf16 = all(weight.dtype == torch.bfloat16 for weight in weights)  # fp16's gradients are scaled
    if bf16 and all(weight.device.type == "cpu" and weight.is_contiguous() for weight in weights):
        wrapper.step = partial(_step, wrapper, optimizer)


@torch.no_grad()
def _step(wrapper: Any, optimizer: torch.optim.Optimizer) -> bool:
    """Clip and step; return whether the gradients are not finite, in which case nothing is stepped."""
    gradients = [w.grad.contiguous() for group in wrapper.fp16_groups for w in group if w.grad is not None]
    norm = math.sqrt(torch.ops.fangyan.sum_of_squares(gradients)) if gradients else 0.0
    wrapper.overflow = not math.isfinite(norm)
    if wrapper.overflow:
        overflow: bool = wrapper._skip_invalid_grad_norm()
        return overflow
    wrapper._global_grad_norm = norm
    wrapper._update_scale(False)  # it counts the step
    # DeepSpeed's clipping, to its constant.
    excess = (norm + 1e-6) / wrapper.clip_grad if wrapper.clip_grad > 0.0 else 1.0
    scale = 1.0 / max(excess, 1.0)
    for group, masters, weights in zip(
        optimizer.param_groups, wrapper.fp32_groups, wrapper.fp16_groups, strict=True
    ):
        for master, weight in zip(masters, weights, strict=True):
            _step_one(optimizer, group, master, weight, scale)
    return False


def _step_one(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], master: Tensor, weight: Tensor, scale: float
) -> None:
    state = optimizer.state[master]
    if not state:  # as torch.optim.AdamW makes it
        state["step"] = torch.zeros((), dtype=torch.float32)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(master), torch.zeros_like(master)
    state["step"] += 1
    # A weight without a gradient decays and moves by its averages, as with DeepSpeed's gradient of zeros.
    gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad.contiguous()
    beta1, beta2 = group["betas"]
    torch.ops.fangyan.optimizer_step_(
        "adam",
        *(master, gradient, state["exp_avg"], state["exp_avg_sq"], None, None, None, None, weight.detach()),
        *(group["lr"], beta1, beta2, 0.0, 0.0, group["eps"], group["weight_decay"]),
        *(int(state["step"]), scale),
    )
