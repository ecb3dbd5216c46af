"""Attention masks of packed rows: one for each kind of attention that the model's layers have.

They are transformers' own, as its models make them for unpacked sequences, within each sequence of a row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils

# The kinds of attention that encoders have beside the full one.
_ENCODER_MASKS = {
    "full_attention": masking_utils.create_bidirectional_mask,
    "sliding_attention": masking_utils.create_bidirectional_sliding_window_mask,
}

Masks = Tensor | dict[str, Tensor | None] | None


def packed_masks(model: Any, sequence_ids: Tensor, position_ids: Tensor, causal: bool) -> Masks:
    """Return who may attend to whom: the same sequence, and what a layer's window or chunk leaves of it.

    An empty place attends to empty places, so that no softmax is over nothing.

    Args:
        model: of transformers.
        sequence_ids: (R, W), int64: 1, 2, … along a row, 0 where there is nothing.
        position_ids: (R, W), int64, from 0 in every sequence and 0 where there is nothing.
        causal: whether a token attends to the past alone.

    Returns:
        An additive mask, (R, 1, W, W), in the model's dtype, or a dictionary of them by the model's layer
        types; None where rows hold one sequence each and attention's own causality is enough.
    """
    config = model.config.get_text_config()
    # Its size, dtype and device are all that is read.
    embeddings = torch.empty(*sequence_ids.shape, 0, dtype=model.dtype, device=sequence_ids.device)
    if causal:
        # The cache, None, has another name since transformers 5.24.
        make = getattr(model, "create_masks_for_generate", masking_utils.create_masks_for_generate)
        masks = make(model.config, embeddings, None, None, position_ids=position_ids)
    elif "sliding_attention" in (kinds := set(getattr(config, "layer_types", None) or ())):
        same = _same_sequence(sequence_ids)
        masks = {
            kind: _ENCODER_MASKS[kind](config, embeddings, None, and_mask_function=same) for kind in kinds
        }
    else:
        masks = block_mask(sequence_ids)
    if isinstance(masks, dict):
        return {kind: _additive(mask, model.dtype) for kind, mask in masks.items()}
    return _additive(masks, model.dtype)


def block_mask(sequence_ids: Tensor) -> Tensor:
    """Return which tokens are of the same sequence, (R, 1, W, W), bool."""
    return sequence_ids[:, None, :, None] == sequence_ids[:, None, None, :]


def _same_sequence(sequence_ids: Tensor) -> Any:
    def same(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
        return sequence_ids[row, query] == sequence_ids[row, key]

    return same


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return a mask to add to the scores: with a bool mask every layer's attention makes its own."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(
        ~mask, torch.finfo(dtype).min
    )
