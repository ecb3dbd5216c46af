"""How batches of a model are laid out on this machine."""

from __future__ import annotations

from typing import Any

from fangyan.device import on_gpu
from fangyan.models.attention import takes_boundaries
from fangyan.models.packed import Layout
from fangyan.models.structure import position_offset


def choose_layout(
    model: Any, packing: bool, half: bool, attention_dropout: float
) -> tuple[Layout, list[str]]:
    """Return the layout, and a message where it is not what this machine does fastest.

    Args:
        model: of transformers.
        packing: whether sequences may share a row.
        half: whether the forward is in 16 bits on an Ampere GPU or later, as PyTorch's variable-length kernel
            for GPUs needs.
        attention_dropout: which no variable-length kernel has.
    """
    if not packing:
        return "padded", []
    if on_gpu():
        return ("varlen" if half else "rows"), []
    if attention_dropout:
        reason = "model.attention_dropout is not 0"
    elif not takes_boundaries(model, position_offset(model)):
        reason = f"{type(model).__name__} caps its scores, or does not pass boundaries on to its attention"
    else:
        return "varlen", []
    return "rows", [f"train.packing: sequences are kept apart by masks, which is slower: {reason}"]
