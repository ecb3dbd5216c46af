"""Arrays with a number for each of millions of examples, without copies of them on the way."""

from __future__ import annotations

import random
from array import array

import numpy as np
from numpy.typing import NDArray

# Elements of an array that are gathered at once: NumPy copies indices to 8 bytes each.
_PIECE = 1 << 20


def shuffled(count: int, seed: int | str) -> NDArray[np.uint32]:
    """Return the numbers below ``count`` in an order that the seed decides."""
    order = array("I")
    # An array that is made of a range grows step by step, and is copied as it does.
    order.frombytes(np.arange(count, dtype=np.uint32).tobytes())
    random.Random(seed).shuffle(order)
    return np.frombuffer(order, dtype=np.uint32)


def differences(ends: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return how long each of successive spans is, given where they end."""
    found = np.empty(len(ends), dtype=np.int32)
    found[:1] = ends[:1]
    np.subtract(ends[1:], ends[:-1], out=found[1:], casting="unsafe")
    return found


def cumulative(values: NDArray[np.integer], order: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the running sums of ``values[order]``."""
    totals = np.empty(len(order), dtype=np.int64)
    for start in range(0, len(order), _PIECE):
        totals[start : start + _PIECE] = values[order[start : start + _PIECE]]
    return np.cumsum(totals, out=totals)
