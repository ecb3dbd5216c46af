"""Which examples a split holds out: whole groups, drawn by a seed."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fangyan.data.arrays import cumulative, differences, shuffled
from fangyan.data.example import Example
from fangyan.data.store import ExampleFile, Subset
from fangyan.errors import UserError


def hold_out(
    examples: Sequence[Example], fraction: float, seed: int
) -> tuple[Sequence[Example], Sequence[Example]]:
    """Move whole groups out of ``examples`` until the fraction is reached."""
    keys = group_keys(examples)
    groups, sizes = count_groups(keys)
    order = shuffled(len(groups), seed)
    taken = cumulative(sizes, order)
    chosen = np.sort(groups[order[: taken.searchsorted(fraction * len(examples)) + 1]])
    del groups, sizes, order, taken
    return _split(examples, keys, chosen)


def take_fold(
    examples: Sequence[Example], fold: str, seed: int
) -> tuple[Sequence[Example], Sequence[Example]]:
    """Return the examples outside and inside a fold; those of one group are in one fold.

    Groups are shuffled, and the largest go first to the smallest fold: sizes are nearly equal.

    Raises:
        UserError: if there are fewer groups than folds.
    """
    number, count = map(int, fold.split("/"))
    keys = group_keys(examples)
    groups, sizes = count_groups(keys)
    if len(groups) < count:
        raise UserError(
            f"data.fold: {count} folds of {len(groups)} groups that are kept together (identical sentences, "
            f"or documents); expected {len(groups)} folds at most"
        )
    order = shuffled(len(groups), seed)
    folds = [(0, i) for i in range(count)]
    chosen = []
    for group in sorted(order, key=lambda i: -sizes[i]):
        size, lightest = folds[0]
        heapq.heapreplace(folds, (size + int(sizes[group]), lightest))
        if lightest == number - 1:
            chosen.append(groups[group])
    return _split(examples, keys, np.sort(np.array(chosen, dtype=groups.dtype)))


def count_groups(keys: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Return the groups in order and how many examples each has; ``np.unique`` takes 70 bytes per example."""
    in_order = np.sort(keys)
    last = np.ones(len(keys), dtype=np.bool_)
    last[:-1] = in_order[1:] != in_order[:-1]
    groups = in_order[last]
    del in_order
    ends = last.nonzero()[0]
    ends += 1
    return groups, differences(ends)


def _split(
    examples: Sequence[Example], keys: NDArray[Any], chosen: NDArray[Any]
) -> tuple[Sequence[Example], Sequence[Example]]:
    """Return the examples outside and inside the chosen groups, which are in order."""
    inside = chosen[chosen.searchsorted(keys).clip(max=len(chosen) - 1)] == keys
    return _select(examples, ~inside), _select(examples, inside)


def group_keys(examples: Sequence[Example]) -> NDArray[Any]:
    """Return a number for each example, the same within its group, in an order that fixes the draw.

    Groups in memory are in alphabetical order; those in a file, which may be whole texts, in that of hashes.
    """
    if isinstance(examples, ExampleFile | Subset):
        return examples.groups
    places = {group: i for i, group in enumerate(sorted({example.group for example in examples}))}
    return np.array([places[example.group] for example in examples], dtype=np.int64)


def _select(examples: Sequence[Example], mask: NDArray[np.bool_]) -> Sequence[Example]:
    return take(examples, mask.nonzero()[0])


def take(examples: Sequence[Example], indices: NDArray[np.integer[Any]]) -> Sequence[Example]:
    """Return some examples, without reading them where they are in a file."""
    if isinstance(examples, ExampleFile | Subset):
        return Subset(examples, indices)
    return [examples[i] for i in indices.tolist()]
