"""Earlier data that is trained on again beside the new, so that it is not forgotten.

Experience replay (Rolnick et al. 2019, arXiv 1811.11682), and pseudo-rehearsal where the earlier data is text
that the model itself writes before it is trained (Robins 1995; Sun et al. 2020, arXiv 1909.03329).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import Field

from fangyan.config import Config
from fangyan.errors import UserError

if TYPE_CHECKING:
    from fangyan.data.example import Example
    from fangyan.data.splits import DataConfig

# The source that is no file.
SELF = "self"


class Replay(Config):
    """The recipe's ``data.replay``."""

    # More would be an epoch of hundreds of times its own length.
    share: Annotated[float, Field(ge=0.0, le=0.99)] = Field(
        0.0, description="Share of the sub-words of an epoch that are of the source; 0 replays nothing."
    )
    source: dict[str, Any] | Literal["self"] | None = Field(
        None,
        description="A section like data, whose train is replayed. self: text that a causal model writes by "
        "itself before it is trained.",
    )
    texts: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        200, description="Of source self: how many texts, of 128 sub-words at most."
    )

    @pydantic.model_validator(mode="after")
    def _source_is_right(self) -> Replay:
        if self.share and self.source is None:
            raise ValueError(f"share is {self.share}, and source is missing; expected data, or self")
        try:
            self.data()
        except UserError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def is_own(self) -> bool:
        """Return whether the model writes by itself what is replayed."""
        return self.share > 0.0 and self.source == SELF

    def data(self) -> DataConfig | None:
        """Return the data of the source, where it is data."""
        if not self.share or not isinstance(self.source, dict):
            return None
        from fangyan.data.formats import parse_other_data  # whose members have this section

        return parse_other_data(self.source, "data.replay.source")

    def examples(self, seed: int) -> Sequence[Example]:
        """Return what is replayed of files: nothing where the model writes it."""
        from fangyan.data.other_data import train_of

        data = self.data()
        return [] if data is None else train_of(data, "data.replay.source", seed)

    def repeats(
        self, own: NDArray[np.float32], lengths: NDArray[np.integer], is_replayed: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Return how often each sequence is seen in an epoch, (S,), so that :attr:`share` comes true.

        Args:
            own: how often, if nothing was replayed, (S,).
            lengths: sub-words of each, (S,).
            is_replayed: which of them are the source's, (S,).
        """
        wanted = self.share / (1.0 - self.share) * float((own * lengths)[~is_replayed].sum())
        there = float(lengths[is_replayed].sum())
        if not there:
            raise UserError("data.replay.source: none of its train makes a sequence, expected some")
        return np.where(is_replayed, np.float32(wanted / there), own)
