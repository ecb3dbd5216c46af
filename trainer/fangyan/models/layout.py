"""How batches of a model are laid out on this machine."""

from __future__ import annotations

from fangyan.device import on_gpu
from fangyan.models.packed import Layout, PackedModel
from fangyan.models.self_check import SelfCheck

_DESCRIPTIONS = {
    "rows": "sequences are kept apart by masks, which is slower",
    "padded": "each sequence has a row of its own, with padding",
    "unpadded": "each length has a forward of its own, without padding",
}


def choose_layout(model: PackedModel, packing: bool, half: bool, attention_dropout: float) -> list[str]:
    """Put a model into the fastest layout that is right; return messages where it is not the usual one.

    Args:
        model: in any layout.
        packing: whether sequences may share a row.
        half: whether the forward is in 16 bits on an Ampere GPU or later, as PyTorch's variable-length kernel
            for GPUs needs.
        attention_dropout: which no variable-length kernel has.

    Raises:
        UserError: if the model's logits or loss are wrong in every layout.
    """
    reasons: list[str] = []
    layouts: list[Layout] = ["varlen", "rows", "padded", "unpadded"]
    if not packing:
        layouts = ["padded", "unpadded"]
    elif on_gpu() and not half:
        layouts.remove("varlen")
    elif attention_dropout:
        layouts.remove("varlen")
        reasons.append("model.attention_dropout is not 0")
    return [*_choose(model, layouts, reasons), *model.messages]


def keep_layout(model: PackedModel, layout: Layout) -> list[str]:
    """Put a loaded model into its export's layout, or the next that is right; see :func:`choose_layout`."""
    layouts: list[Layout] = ["rows", "padded", "unpadded"]
    return _choose(model, layouts[layouts.index(layout) :], [])


def _choose(model: PackedModel, layouts: list[Layout], reasons: list[str]) -> list[str]:
    check = SelfCheck(model)
    reasons += check.choose_layout(layouts)
    check.check_loss()
    # Why the layout before this one is wrong.
    return [f"train.packing: {_DESCRIPTIONS[model.layout]}: {reason}" for reason in reasons[-1:]]
