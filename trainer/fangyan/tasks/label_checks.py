"""Checks of how often labels occur, whatever they label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from fangyan.data.findings import Finding

# Labels of train that occur less often are hardly learned.
RARE = 10
# The most frequent label over the rarest from which weights for them are worth a try.
IMBALANCED = 100
_NAMED = 8


def rare(counts: Counter[str], noun: str) -> Iterator[Finding]:
    """Find labels with few examples.

    Args:
        counts: of the labels of train.
        noun: what they are, such as ``tags``.
    """
    few = sorted((count, label) for label, count in counts.items() if count < RARE)
    if few:
        named = ", ".join(f"{label} {count}" for count, label in few[:_NAMED])
        more = ", …" if len(few) > _NAMED else ""
        yield Finding("warning", "data.train", f"{noun} that occur fewer than {RARE} times: {named}{more}")


def imbalanced(counts: Counter[str], noun: str) -> Iterator[Finding]:
    """Find a set of labels of which some are far more frequent than others."""
    ordered = counts.most_common()
    if not ordered or ordered[0][1] < IMBALANCED * ordered[-1][1]:
        return
    total = counts.total()
    most, least = (f"{label} is {100 * count / total:.2g}%" for label, count in (ordered[0], ordered[-1]))
    yield Finding(
        "warning",
        "data.train",
        f"{noun} are imbalanced: {most} of them, {least}; task.class_weights=balanced weighs rare ones more",
    )
