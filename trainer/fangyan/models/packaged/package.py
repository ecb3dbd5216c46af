"""What a packaged model consists of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PackagedModel:
    """A model from inside a package.

    Attributes:
        config: of transformers.
        tokenizer: fast.
        weights: float32, under transformers' names; None where there are none, or none were asked for.
    """

    config: Any
    tokenizer: Any
    weights: dict[str, Tensor] | None
