"""What a text's labels are: a class, any number of classes, or a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Literal

from fangyan.data.example import Example
from fangyan.errors import UserError

# As ``problem_type`` of transformers' configurations has it.
Kind = Literal["single_label_classification", "multi_label_classification", "regression"]
# As recipes have it.
Wanted = Literal["auto", "single_label", "multi_label", "regression"]

KINDS: dict[Wanted, Kind] = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
# The output of a regression, as a model's configuration names it.
SCORE = "score"
# Examples that a kind is recognised by.
_LOOKED_AT = 1000


def recognise(train: Sequence[Example]) -> Kind:
    """Return the kind of the labels of train, by what the file has: text, lists or fractions."""
    labels = [example.fields["label"] for example in islice(train, _LOOKED_AT)]
    if any(isinstance(label, tuple) for label in labels):
        return "multi_label_classification"
    if any(isinstance(label, float) for label in labels):
        return "regression"
    return "single_label_classification"


def reader(kind: Kind) -> Callable[[Example], Any]:
    """Return what reads an example's label as its kind has it: a string, a tuple of strings, or a float."""
    return {
        "single_label_classification": _one,
        "multi_label_classification": _several,
        "regression": _number,
    }[kind]


def classes_of(kind: Kind, labels: Iterable[Any]) -> Iterable[str]:
    """Yield every class that labels of a kind name; of numbers, none."""
    for label in labels:
        if kind == "single_label_classification":
            yield label
        elif kind == "multi_label_classification":
            yield from label


def check_classes(train: Sequence[Example], kind: Kind, classes: Sequence[str]) -> None:
    """Refuse a label that is not among the recipe's classes."""
    read = reader(kind)
    for example in train:
        for label in classes_of(kind, [read(example)]):
            if label not in classes:
                raise UserError(
                    f"{example.source}: label {label!r} is not among the {len(classes)} classes: "
                    f"{', '.join(classes[:8])}{', …' if len(classes) > 8 else ''}"
                )


def _one(example: Example) -> str:
    label = example.fields["label"]
    if not isinstance(label, str):
        raise UserError(
            f"{example.source}: label is {_shown(label)}, expected one class, as in the lines before "
            "(task.kind=multi_label and task.kind=regression are for others)"
        )
    return label


def _several(example: Example) -> tuple[str, ...]:
    label = example.fields["label"]
    if not isinstance(label, tuple):
        raise UserError(
            f"{example.source}: label is {_shown(label)}, expected a list of classes, maybe empty"
        )
    if len(set(label)) < len(label):
        raise UserError(f"{example.source}: label is {_shown(label)}, expected every class once")
    return label


def _number(example: Example) -> float:
    label = example.fields["label"]
    try:
        number = float(label)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{example.source}: label is {_shown(label)}, expected a number")
    return number


def _shown(label: Any) -> str:
    return repr(list(label) if isinstance(label, tuple) else label)[:60]
