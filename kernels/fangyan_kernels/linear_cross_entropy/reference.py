"""Cross-entropy of a linear head in plain PyTorch: owns the meaning, on any device and dtype.

For a labelled token t with target y, of weight u_t, and class weights w:

    z_c    = input_t . weight_c + bias_c,          then softcap tanh(z_c / softcap) if there is one
    loss_t = u_t ( (1 - eps) w_y (lse - z_y) + eps / C sum_c w_c (lse - z_c) + z_loss lse^2 )

with lse = log sum_c exp z_c; 0 where the target is ignored. Cross-entropy with label smoothing:
Szegedy et al. 2015 (arXiv 1512.00567); z-loss: Chowdhery et al. 2022 (arXiv 2204.02311), 5; softcap:
Gemma Team 2024 (arXiv 2408.00118), 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_cross_entropy(
    input_TH: Tensor,
    weight_CH: Tensor,
    bias_C: Tensor | None,
    target_T: Tensor,
    class_weight_C: Tensor | None,
    token_weight_T: Tensor | None,
    divisor: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    predict: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first four results of the operator ``fangyan::linear_cross_entropy``, by autograd's own means."""
    labelled_T = target_T != ignore_index
    # Whatever an ignored token holds, an inf or a NaN too, reaches no gradient.
    input_TH = torch.where(labelled_T[:, None], input_TH, 0.0)
    logits_TC = F.linear(input_TH, weight_CH, bias_C)
    logits_TC = logits_TC.to(torch.promote_types(logits_TC.dtype, torch.float32))
    if softcap:
        logits_TC = softcap * torch.tanh(logits_TC / softcap)
    if class_weight_C is not None:
        class_weight_C = class_weight_C.to(logits_TC.dtype)
    loss_T = F.cross_entropy(
        logits_TC,
        target_T,
        weight=class_weight_C,
        reduction="none",
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )
    if z_loss:
        loss_T = loss_T + z_loss * torch.where(labelled_T, logits_TC.logsumexp(1).square(), 0.0)
    if token_weight_T is not None:
        loss_T = loss_T * torch.where(labelled_T, token_weight_T, 0.0)
    prediction_T = logits_TC.argmax(1) if logits_TC.numel() else target_T
    labelled, correct = labelled_T.sum(), ((prediction_T == target_T) & labelled_T).sum()
    prediction_T = torch.where(labelled_T, prediction_T, ignore_index) if predict else target_T[:0]
    if reduction != "none":
        weights = target_T, class_weight_C, token_weight_T, divisor
        loss_T = reduced(loss_T, reduction, *weights, ignore_index)
    return loss_T, labelled, correct, prediction_T


def reduced(
    loss_T: Tensor,
    reduction: str,
    target_T: Tensor,
    class_weight_C: Tensor | None,
    token_weight_T: Tensor | None,
    divisor: Tensor | None,
    ignore_index: int,
) -> Tensor:
    """The sum or the mean of the tokens' losses."""
    if reduction == "mean" and divisor is None:
        divisor = _total_weight(target_T, ignore_index, class_weight_C, token_weight_T, loss_T.dtype)
    return loss_T.sum() if divisor is None else loss_T.sum() / divisor


def _total_weight(
    target_T: Tensor,
    ignore_index: int,
    class_weight_C: Tensor | None,
    token_weight_T: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """What ``mean`` divides by; 1 where it would be 0, so that no label is a loss of 0 and not NaN."""
    labelled_T = target_T != ignore_index
    factor_T = labelled_T.to(dtype)
    if class_weight_C is not None:
        factor_T = factor_T * class_weight_C.to(dtype)[torch.where(labelled_T, target_T, 0)]
    if token_weight_T is not None:
        factor_T = torch.where(labelled_T, factor_T * token_weight_T, 0.0)
    total = factor_T.sum()
    return torch.where(total == 0, torch.ones_like(total), total)
