"""Data that a run reads besides its own: what it replays, and what it is not to forget."""

from __future__ import annotations

from collections.abc import Sequence

from fangyan.data.example import Example
from fangyan.data.splits import DataConfig
from fangyan.errors import UserError


def train_of(data: DataConfig, place: str, seed: int) -> Sequence[Example]:
    """Return the train split of other data: what a run of its own with this seed would learn from.

    Args:
        data: that is read.
        place: of its section in the recipe, for messages.
        seed: of fractions that are held out.
    """
    try:
        return data.load(seed)["train"]
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
