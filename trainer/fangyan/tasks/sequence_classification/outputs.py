"""What evaluation keeps of a classifier's batches."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class TextOutput(NamedTuple):
    """The output of one text.

    Attributes:
        example: index of it.
        scores_C: of the head, float32: (C,).
        hidden_H: what the head reads of it, (H,), where it is asked for.
    """

    example: int
    scores_C: NDArray[np.float32]
    hidden_H: NDArray[np.float32] | None = None
