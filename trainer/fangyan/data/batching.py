"""Which sequences make up each optimizer step, the same for any number of ranks.

Everything follows from the seed and the epoch, so that a resumed run and a run on more ranks see
the same steps, and every rank knows the micro-batches of all others without asking.
"""

from __future__ import annotations

import random
from collections.abc import Sequence


def shuffled_batches(lengths: Sequence[int], batch_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """Shuffle an epoch and cut it into batches of at most ``batch_tokens`` sub-words.

    A sequence that is longer by itself makes a batch of its own.
    """
    order = list(range(len(lengths)))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return _cut(order, lengths, batch_tokens)


def micro_batches(batch: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    """Split a batch into ``count`` micro-batches of nearly equal length; some may be empty.

    Longest first to the lightest micro-batch (Graham 1969): the ranks finish together.
    """
    members: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for i in sorted(batch, key=lambda i: (-lengths[i], i)):
        lightest = loads.index(min(loads))
        members[lightest].append(i)
        loads[lightest] += lengths[i]
    return members


def bucket_by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Put sequences of similar length together, for evaluation, where order is free."""
    return _cut(sorted(range(len(lengths)), key=lambda i: lengths[i]), lengths, batch_tokens)


def _cut(order: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Put neighbours in ``order`` together, up to ``batch_tokens`` (one sequence at least)."""
    batches: list[list[int]] = []
    room = 0
    for i in order:
        if not batches or lengths[i] > room:
            batches.append([])
            room = batch_tokens
        batches[-1].append(i)
        room -= lengths[i]
    return batches
