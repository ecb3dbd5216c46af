"""Cross-entropy of a linear head in plain PyTorch: owns the meaning, on any device and dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_cross_entropy(
    input_TH: Tensor,
    weight_CH: Tensor,
    target_T: Tensor,
    *,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    """Loss of every token, 0 where the target is ignored. The softmax runs in float32 or wider."""
    logits_TC = F.linear(input_TH, weight_CH, linear_bias)
    logits_TC = logits_TC.to(torch.promote_types(logits_TC.dtype, torch.float32))
    if weight is not None:
        weight = weight.to(logits_TC.dtype)
    return F.cross_entropy(
        logits_TC,
        target_T,
        weight=weight,
        reduction="none",
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )
