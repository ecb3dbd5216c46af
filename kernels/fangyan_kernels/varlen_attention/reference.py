"""Attention within each of many sequences in plain PyTorch: what the op means.

Shape suffixes: T tokens, H heads, G heads of keys and values, D elements per head; L tokens of a sequence.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def varlen_attention(
    query_THD: Tensor,
    key_TGD: Tensor,
    value_TGD: Tensor,
    offsets: Tensor,
    window: tuple[int, int],
    scale: float,
) -> Tensor:
    """Compute :func:`fangyan_kernels.varlen_attention`, one sequence at a time."""
    repeats = query_THD.shape[1] // key_TGD.shape[1]
    key_THD, value_THD = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key_TGD, value_TGD))
    outputs = [query_THD.new_empty((0, *query_THD.shape[1:]))]
    for start, end in itertools.pairwise(offsets.tolist()):
        query_HLD, key_HLD, value_HLD = (
            tensor[start:end].transpose(0, 1) for tensor in (query_THD, key_THD, value_THD)
        )
        scores_HLL = scale * query_HLD @ key_HLD.transpose(1, 2)
        seen_LL = visible(end - start, window, query_THD.device)
        probabilities_HLL = scores_HLL.masked_fill(~seen_LL, float("-inf")).softmax(-1)
        outputs.append((probabilities_HLL @ value_HLD).transpose(0, 1))
    return torch.cat(outputs)


def visible(length: int, window: tuple[int, int], device: torch.device) -> Tensor:
    """Return which keys, by column, each token of a sequence sees, (L, L), bool."""
    left, right = (length if reach < 0 else reach for reach in window)
    positions = torch.arange(length, device=device)
    distance_LL = positions[None, :] - positions[:, None]
    return (distance_LL >= -left) & (distance_LL <= right)
