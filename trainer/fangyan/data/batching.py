"""Which sequences make up each optimizer step, the same for any number of ranks.

Everything follows from the seed and the epoch, so that a resumed run and a run on more ranks see
the same steps, and every rank knows the micro-batches of all others without asking.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fangyan.data.arrays import cumulative, shuffled
from fangyan.data.store import Rows

Lengths = Sequence[int] | NDArray[np.integer]


class Batches(Rows[list[int]]):
    """The batches of an epoch, each the indices of its sequences, in the bytes of ``order``.

    Neighbours in ``order`` are put together, up to ``batch_tokens`` (one sequence at least).

    Args:
        order: indices of all sequences, (S,).
        lengths: sub-words of each sequence, (S,).
        batch_tokens: most sub-words of a batch.
    """

    def __init__(self, order: NDArray[np.integer], lengths: NDArray[np.integer], batch_tokens: int):
        self._order = order
        totals = cumulative(lengths, order)
        starts = array("q", [0])
        used = 0
        while starts[-1] < len(order):
            fitting = int(totals.searchsorted(used + batch_tokens, side="right"))
            starts.append(max(fitting, starts[-1] + 1))
            used = int(totals[starts[-1] - 1])
        self._starts: NDArray[np.int64] = np.frombuffer(starts, dtype=np.int64)

    def __len__(self) -> int:
        """Return how many batches there are."""
        return len(self._starts) - 1

    @override
    def at(self, index: int) -> list[int]:
        indices: list[int] = self._order[self._starts[index] : self._starts[index + 1]].tolist()
        return indices


def shuffled_batches(
    lengths: Lengths,
    batch_tokens: int,
    seed: int,
    epoch: int,
    repeats: NDArray[np.float32] | None = None,
) -> Batches:
    """Shuffle an epoch and cut it into batches of at most ``batch_tokens`` sub-words.

    A sequence that is longer by itself makes a batch of its own.

    Args:
        lengths: sub-words of each sequence, (S,).
        batch_tokens: most sub-words of a batch.
        seed: of the run.
        epoch: number of it.
        repeats: how often each sequence is seen, on average over epochs, (S,); by default once.
    """
    if repeats is None:
        return Batches(shuffled(len(lengths), f"{seed}/{epoch}"), np.asarray(lengths), batch_tokens)
    chance = np.random.default_rng([seed, epoch]).random(len(lengths), dtype=np.float32)
    drawn = np.repeat(np.arange(len(lengths), dtype=np.uint32), np.floor(repeats + chance).astype(np.int64))
    return Batches(drawn[shuffled(len(drawn), f"{seed}/{epoch}")], np.asarray(lengths), batch_tokens)


class Epochs(Rows[Batches]):
    """The batches of every epoch, of which one is in memory at a time.

    Args:
        lengths: sub-words of each sequence, (S,).
        batch_tokens: most sub-words of a batch.
        seed: of the shuffling.
        epochs: how many.
        repeats: how often each sequence is seen in an epoch; see :func:`shuffled_batches`.
    """

    def __init__(
        self,
        lengths: Lengths,
        batch_tokens: int,
        seed: int,
        epochs: int,
        repeats: NDArray[np.float32] | None = None,
    ):
        self._lengths = lengths
        self._repeats = repeats
        self._batch_tokens = batch_tokens
        self._seed = seed
        self._epochs = range(epochs)
        self._latest: tuple[int, Batches] | None = None
        # Shuffled and cut here once, for their number alone: a few seconds per 10 million sequences.
        self.num_batches = sum(len(self[epoch]) for epoch in reversed(self._epochs))

    def __len__(self) -> int:
        """Return how many epochs there are."""
        return len(self._epochs)

    @override
    def at(self, index: int) -> Batches:
        if self._latest is None or self._latest[0] != index:
            self._latest = None  # frees it first
            self._latest = (
                index,
                shuffled_batches(self._lengths, self._batch_tokens, self._seed, index, self._repeats),
            )
        return self._latest[1]


def micro_batches(batch: Sequence[int], lengths: Lengths, count: int) -> list[list[int]]:
    """Split a batch into ``count`` micro-batches of nearly equal length; some may be empty.

    Longest first to the lightest micro-batch (Graham 1969): the ranks finish together.
    """
    members: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, i) for i in range(min(count, len(batch)))]  # a heap, whose first is the lightest
    for i in sorted(batch, key=lambda i: (-lengths[i], i)):
        load, lightest = loads[0]
        members[lightest].append(i)
        heapq.heapreplace(loads, (load + int(lengths[i]), lightest))
    return members


def bucket_by_length(lengths: Lengths, batch_tokens: int) -> Batches:
    """Put sequences of similar length together, for evaluation, where order is free."""
    array = np.asarray(lengths)
    return Batches(array.argsort(kind="stable"), array, batch_tokens)
