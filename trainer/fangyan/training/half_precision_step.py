"""The optimizer's step of a model in 16 bits with float32 master weights, at ZeRO stage 0.

DeepSpeed's own handles one parameter at a time, and looks for infinities twice: some twenty launches each,
which on an H100 took half of BERT-base's step. Here PyTorch's operators on lists of tensors handle all at
once. AdamW of a bfloat16 model on the CPU takes one pass in place of seven: gradients are read as they are,
once for their norm and once for the step, which also writes the weights.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import fangyan_kernels  # noqa: F401  (registers the operators)
import torch
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from torch import Tensor


def replace_step(wrapper: Any, optimizer: torch.optim.Optimizer) -> None:
    """Replace the step of DeepSpeed's wrapper; its weights, states and checkpoints stay.

    Args:
        wrapper: DeepSpeed's, of any kind: only that of models in 16 bits at ZeRO stage 0 is changed.
        optimizer: inside it.
    """
    if type(wrapper) is not FP16_UnfusedOptimizer or wrapper.fused_lamb_legacy:
        return
    weights = [weight for group in wrapper.fp16_groups for weight in group]
    bf16 = all(weight.dtype == torch.bfloat16 for weight in weights)  # the C++ kernels take no float16
    on_cpu = all(weight.device.type == "cpu" and weight.is_contiguous() for weight in weights)
    in_one_pass = bf16 and on_cpu and type(optimizer) is torch.optim.AdamW
    wrapper.step = partial(_step_in_one_pass if in_one_pass else _step_by_lists, wrapper, optimizer)


@torch.no_grad()
def _step_by_lists(wrapper: Any, optimizer: torch.optim.Optimizer) -> bool:
    """Unscale, clip and step; return whether the gradients are not finite, in which case nothing is stepped.

    DeepSpeed 0.19.8 divides by the loss scale that the next backward will have: once per window by twice the
    right one.
    """
    masters = [master for group in wrapper.fp32_groups for master in group]
    weights = [weight for group in wrapper.fp16_groups for weight in group]
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm = 0.0
    if gradients:
        norms = torch._foreach_norm(gradients, 2, dtype=torch.float32)
        norm = float(torch.linalg.vector_norm(torch.stack(list(norms))))
    scale = _gradient_scale(wrapper, norm)
    if scale is None:
        return True
    for master, weight in zip(masters, weights, strict=True):
        # A weight without a gradient decays and moves by its averages, as with DeepSpeed's gradient of zeros.
        master.grad = torch.zeros_like(master) if weight.grad is None else torch.empty_like(master)
    wide = [m.grad for m, weight in zip(masters, weights, strict=True) if weight.grad is not None]
    if gradients:
        torch._foreach_copy_(wide, gradients)
        if scale != 1.0:
            torch._foreach_mul_(wide, scale)
    optimizer.step()
    for master in masters:
        master.grad = None
    torch._foreach_copy_([weight.detach() for weight in weights], masters)
    return False


@torch.no_grad()
def _step_in_one_pass(wrapper: Any, optimizer: torch.optim.Optimizer) -> bool:
    """Clip and step AdamW on the CPU; return as :func:`_step_by_lists`."""
    if optimizer._optimizer_step_pre_hooks:  # what acts before a step sees one
        return _step_by_lists(wrapper, optimizer)
    gradients = [w.grad.contiguous() for group in wrapper.fp16_groups for w in group if w.grad is not None]
    norm = math.sqrt(torch.ops.fangyan.sum_of_squares(gradients)) if gradients else 0.0
    scale = _gradient_scale(wrapper, norm)
    if scale is None:
        return True
    for group, masters, weights in zip(
        optimizer.param_groups, wrapper.fp32_groups, wrapper.fp16_groups, strict=True
    ):
        for master, weight in zip(masters, weights, strict=True):
            _step_one(optimizer, group, master, weight, scale)
    return False


def _gradient_scale(wrapper: Any, norm: float) -> float | None:
    """Return what the gradients are to be multiplied by, or None where they are not finite; count the step.

    Args:
        wrapper: whose loss scale and counts are kept up.
        norm: of all gradients, as they are.
    """
    wrapper.overflow = not math.isfinite(norm)
    if wrapper.overflow:
        wrapper._skip_invalid_grad_norm()
        return None
    wrapper._global_grad_norm = norm
    loss_scale = float(wrapper.loss_scale_config.cur_scale)
    wrapper._update_scale(False)
    # DeepSpeed's clipping, to its constant.
    excess = (norm / loss_scale + 1e-6) / wrapper.clip_grad if wrapper.clip_grad > 0.0 else 1.0
    return 1.0 / (max(excess, 1.0) * loss_scale)


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
