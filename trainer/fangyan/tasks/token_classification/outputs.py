"""What evaluation keeps of a tagged sequence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

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
    """

    example: int
    start: int
    classes: list[int] | None
    log_probabilities_TC: NDArray[np.float32] | None = None


def whole_scores(outputs: Iterable[SpanOutput]) -> dict[int, NDArray[np.float32]]:
    """Return the log-probabilities of each example that outputs have them of, (T, C)."""
    spans: dict[int, list[tuple[int, NDArray[np.float32]]]] = {}
    for output in outputs:
        if output.log_probabilities_TC is not None:
            spans.setdefault(output.example, []).append((output.start, output.log_probabilities_TC))
    return {
        example: np.concatenate([scores_TC for _, scores_TC in sorted(parts, key=lambda part: part[0])])
        for example, parts in spans.items()
    }
