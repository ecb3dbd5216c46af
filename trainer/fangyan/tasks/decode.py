"""The best tag sequence that is well-formed: an ``I-x`` only after a ``B-x`` or an ``I-x``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class SpanDecoder:
    """Viterbi decoding (1967) over tags with ``B-`` and ``I-`` prefixes, in time T x C.

    Every transition but those into ``I-x`` is free, so a step needs one maximum over all tags and,
    for each ``I-x``, the better of ``B-x`` and ``I-x``; never a C x C table.

    Args:
        labels: the tag set.
    """

    def __init__(self, labels: list[str]):
        index = {label: i for i, label in enumerate(labels)}
        self._inside = np.array([i for i, label in enumerate(labels) if label.startswith("I-")], dtype=np.intp)
        # An I- whose B- is not in the tag set can only follow itself: it is never begun.
        self._begin = np.array([index.get(f"B-{labels[i][2:]}", i) for i in self._inside], dtype=np.intp)

    def __call__(self, scores_TC: NDArray[np.float32]) -> list[int]:
        """Classes of the best well-formed sequence; ``scores_TC`` are log-probabilities, (T, C)."""
        tokens, classes = scores_TC.shape
        if tokens == 0:
            return []
        back_TC = np.empty((tokens, classes), dtype=np.intp)
        best_C = scores_TC[0].astype(np.float64)
        best_C[self._inside] = -np.inf
        for t in range(1, tokens):
            top = int(best_C.argmax())
            back_TC[t] = top
            from_begin = best_C[self._begin] >= best_C[self._inside]
            back_TC[t, self._inside] = np.where(from_begin, self._begin, self._inside)
            best_C = best_C[back_TC[t]] + scores_TC[t]
        path = [int(best_C.argmax())]
        for t in range(tokens - 1, 0, -1):
            path.append(int(back_TC[t, path[-1]]))
        return path[::-1]
