"""Which sequences make up each optimizer step, the same for any number of ranks.

Everything follows from the seed and the epoch, so that a resumed run and a run on more ranks see
the same steps, and every rank knows every other's share without asking.
"""

from __future__ import annotations

import random
from collections.abc import Sequence


def epoch_steps(lengths: Sequence[int], batch_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """A shuffled epoch cut into steps of at most ``batch_tokens`` sub-words (one sequence at least)."""
    order = list(range(len(lengths)))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return _cut(order, lengths, batch_tokens)


def split_step(step: Sequence[int], lengths: Sequence[int], parts: int) -> list[list[int]]:
    """A step's sequences in ``parts`` shares of nearly equal length; some may be empty.

    Longest first to the lightest share (Graham 1969): the ranks finish together.
    """
    shares: list[list[int]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for i in sorted(step, key=lambda i: (-lengths[i], i)):
        lightest = loads.index(min(loads))
        shares[lightest].append(i)
        loads[lightest] += lengths[i]
    return shares


def length_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Sequences of like length together, for evaluation, where order is free."""
    return _cut(sorted(range(len(lengths)), key=lambda i: lengths[i]), lengths, batch_tokens)


def _cut(order: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Neighbours in ``order`` together, up to ``batch_tokens`` (one sequence at least)."""
    batches: list[list[int]] = []
    room = 0
    for i in order:
        if not batches or lengths[i] > room:
            batches.append([])
            room = batch_tokens
        batches[-1].append(i)
        room -= lengths[i]
    return batches
