"""Checks of the labels of texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from fangyan.data.example import Example, Splits
from fangyan.data.findings import Finding
from fangyan.tasks.checks import COMPARED, counted
from fangyan.tasks.label_checks import imbalanced, rare

_NAMED = 8


def label_findings(splits: Splits, counts: Mapping[str, Counter[str]]) -> Iterator[Finding]:
    """Yield what is wrong with the labels of a data set.

    Args:
        splits: examples, by name.
        counts: per split how often each class occurs; nothing of numbers.
    """
    train = counts.get("train", Counter())
    yield from rare(train, "classes")
    yield from imbalanced(train, "classes")
    unseen = sorted(set().union(*counts.values()) - set(train))
    if unseen:
        more = f", … ({len(unseen):,} in all)" if len(unseen) > _NAMED else ""
        named = ", ".join(unseen[:_NAMED])
        yield Finding("warning", "data.train", f"classes that never occur in train: {named}{more}")
    yield from contradictions(splits)


def contradictions(splits: Splits) -> Iterator[Finding]:
    """Find texts that occur with different labels."""
    first: dict[int, tuple[str, Example]] = {}
    found = []
    for name, examples in splits.items():
        for example in islice(examples, COMPARED):
            text, pair, label = (example.fields.get(field) for field in ("text", "pair", "label"))
            _, other = first.setdefault(hash((text, pair)), (name, example))
            same = (other.fields["text"], other.fields.get("pair")) == (text, pair)
            if same and other.fields["label"] != label:
                found.append((other, example))
    if found:
        other, example = found[0]
        yield Finding(
            "warning",
            example.source,
            f"label is {example.fields['label']!r}, but {other.fields['label']!r} of the same text in "
            f"{other.source}; texts like this: {len(found):,}",
        )


def cut_message(name: str, examples: Sequence[Example], cut: Sequence[int], room: int) -> Iterator[Finding]:
    """Yield a finding on the texts whose end is not read.

    Args:
        name: of the split.
        examples: of it.
        cut: indices of those texts, among the first :data:`COMPARED`.
        room: sub-words that are read.
    """
    if cut:
        count = f"{len(cut):,} of its {counted(len(examples), COMPARED)}"
        yield Finding(
            "warning",
            f"data.{name}",
            f"{count} are longer than {room:,} sub-words, and the rest is not read, such as of "
            f"{examples[cut[0]].source}",
        )
