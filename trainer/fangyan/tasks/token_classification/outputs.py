"""What evaluation keeps of a tagger's batches, and its pieces joined to whole sentences."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class SpanOutput:
    """The output of one sequence.

    Attributes:
        example: index of its example.
        start: of the words that the sequence scores.
        classes: of those words, decoded, where they are the whole example: (words,).
        log_probabilities_TC: of those words, where other sequences have the rest, or they are asked for:
            (words, C).
        hidden_TH: what the head reads of those words, where it is asked for: (words, H).
    """

    example: int
    start: int
    classes: list[int] | None
    log_probabilities_TC: NDArray[np.float32] | None = None
    hidden_TH: NDArray[np.float32] | None = None


def whole_examples(
    outputs: Iterable[SpanOutput], field: Literal["log_probabilities_TC", "hidden_TH"]
) -> dict[int, NDArray[np.float32]]:
    """Return a field of each example that outputs have it of, with a row for each word."""
    spans: dict[int, list[tuple[int, NDArray[np.float32]]]] = {}
    for output in outputs:
        rows = getattr(output, field)
        if rows is not None:
            spans.setdefault(output.example, []).append((output.start, rows))
    return {
        example: np.concatenate([rows for _, rows in sorted(parts, key=lambda part: part[0])])
        for example, parts in spans.items()
    }
