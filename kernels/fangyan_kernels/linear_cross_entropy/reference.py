"""Cross-entropy of a linear head in plain PyTorch: owns the meaning, on any device and dtype.

For a labelled token t with target y, of weight u_t, and class weights w:

    z_c    = logit_scale (input_t . weight_c + bias_c),     then softcap tanh(z_c / softcap) if there is one
    loss_t = u_t ( (1 - eps) w_y (lse - z_y) + eps / C sum_c w_c (lse - z_c) + z_loss lse^2 )

with lse = log sum_c exp z_c; 0 where the target is ignored. Cross-entropy with label smoothing:
Szegedy et al. 2015 (arXiv 1512.00567); z-loss: Chowdhery et al. 2022 (arXiv 2204.02311), 5; softcap:
Gemma Team 2024 (arXiv 2408.00118), 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fangyan_kernels.ops.linear_cross_entropy import Inputs, Options


def linear_cross_entropy(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the first four results of the operator, which autograd differentiates."""
    target_T, ignore_index = inputs.target_T, options.ignore_index
    valid_T = target_T != ignore_index
    # Whatever an ignored token holds, an inf or a NaN too, reaches no gradient.
    input_TH = torch.where(valid_T[:, None], inputs.input_TH, 0.0)
    logits_TC = F.linear(input_TH, inputs.weight_CH, inputs.bias_C)
    logits_TC = logits_TC.to(torch.promote_types(logits_TC.dtype, torch.float32))
    if options.logit_scale != 1.0:
        logits_TC = options.logit_scale * logits_TC
    if options.softcap:
        logits_TC = options.softcap * torch.tanh(logits_TC / options.softcap)
    class_weight_C = inputs.class_weight_C
    loss_T = F.cross_entropy(
        logits_TC,
        target_T,
        weight=None if class_weight_C is None else class_weight_C.to(logits_TC.dtype),
        reduction="none",
        ignore_index=ignore_index,
        label_smoothing=options.label_smoothing,
    )
    if options.z_loss:
        loss_T = loss_T + options.z_loss * torch.where(valid_T, logits_TC.logsumexp(1).square(), 0.0)
    if inputs.token_weight_T is not None:
        loss_T = loss_T * torch.where(valid_T, inputs.token_weight_T, 0.0)
    prediction_T = logits_TC.argmax(1) if logits_TC.numel() else target_T
    num_valid, num_correct = valid_T.sum(), ((prediction_T == target_T) & valid_T).sum()
    prediction_T = torch.where(valid_T, prediction_T, ignore_index) if options.predict else target_T[:0]
    return reduced(loss_T, inputs, options), num_valid, num_correct, prediction_T


def reduced(loss_T: Tensor, inputs: Inputs, options: Options) -> Tensor:
    """Sum or average the tokens' losses, or return them as they are."""
    if options.reduction == "none":
        return loss_T
    if options.reduction == "sum":
        return loss_T.sum()
    divisor = inputs.divisor
    if divisor is None:
        divisor = _total_weight(inputs, options.ignore_index, loss_T.dtype)
    return loss_T.sum() / divisor


def _total_weight(inputs: Inputs, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """Sum the targets' weights; 1 where that is 0, so that a batch without a target has a loss of 0."""
    valid_T = inputs.target_T != ignore_index
    weight_T = valid_T.to(dtype)
    if inputs.class_weight_C is not None:
        class_weight_C = inputs.class_weight_C.to(dtype)
        weight_T = weight_T * class_weight_C[torch.where(valid_T, inputs.target_T, 0)]
    if inputs.token_weight_T is not None:
        weight_T = torch.where(valid_T, weight_T * inputs.token_weight_T, 0.0)
    total = weight_T.sum()
    return torch.where(total == 0, torch.ones_like(total), total)
