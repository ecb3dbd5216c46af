"""How an example becomes a prompt that ends where its label follows."""

from __future__ import annotations

import string
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from fangyan.config import short
from fangyan.data.example import Example
from fangyan.errors import UserError
from fangyan.tasks.task import Unit

# Texts that say nothing (Zhao et al. 2021, section 5).
CONTENT_FREE = ("N/A", "", "[MASK]")
# By the fields that a unit has, where the user gives none.
_DEFAULTS = {
    "token": "Sentence: {marked}\nWord: {token}\nTag:",
    "pair": "Text: {text}\nSecond text: {pair}\nLabel:",
    "text": "Text: {text}\nLabel:",
}


@dataclass(frozen=True, slots=True)
class Template:
    """What is written of a unit, up to where its label follows after a space.

    Attributes:
        text: with fields in braces, such as ``Text: {text}\\nLabel:``.
        instruction: what comes before everything, or "".
    """

    text: str
    instruction: str = ""

    @classmethod
    def default(cls, fields: Collection[str]) -> str:
        """Return the text of units with some fields."""
        return next(text for field, text in _DEFAULTS.items() if field in fields)

    def check(self, fields: Collection[str]) -> None:
        """Refuse a template without any field of a unit, or with others.

        Raises:
            UserError: saying which there are.
        """
        known = list(fields)
        expected = f"expected some of {', '.join(f'{{{name}}}' for name in known)}"
        try:
            parts = list(string.Formatter().parse(self.text))
        except ValueError as error:
            raise UserError(f"--template: {short(self.text)}: {error}, {expected}") from None
        for _, name, form, conversion in parts:
            if form or conversion:
                raise UserError(
                    f"--template: {short(self.text)} has more than a name in {{{name}…}}, {expected}"
                )
        named = {name for _, name, _, _ in parts if name is not None}
        if unknown := sorted(named - set(known)):
            raise UserError(f"--template: {short(self.text)} has {{{unknown[0]}}}, {expected}")
        if not named or not self.text.format(**dict.fromkeys(known, "")).strip():
            missing = "words beside its fields" if named else "a field"
            raise UserError(
                f"--template: {short(self.text)} is without {missing}, {expected}, and some words"
            )

    def of(self, unit: Unit) -> str:
        """Return the prompt of a unit."""
        return self.text.format(**unit.fields)

    def without_content(self, unit: Unit) -> list[str]:
        """Return prompts of the same kind as a unit's that say nothing, to calibrate by."""
        return [self.text.format(**dict.fromkeys(unit.fields, text)) for text in CONTENT_FREE]


def draw_shots(
    examples: Sequence[Example],
    units_of: Callable[[Example], list[Unit]],
    number: int,
    seed: int,
    is_scored: Callable[[Example], bool],
) -> list[Unit]:
    """Return units to show with their labels: as many of each label as can be, in random order.

    Args:
        examples: of train.
        units_of: returns the units of an example.
        number: how many to draw; fewer where there are not as many.
        seed: of the draw. More shots of the same seed have those of fewer among them.
        is_scored: whether an example is among those that are scored: its label would be in the prompt.
    """
    if not number:
        return []
    draw = np.random.default_rng(seed)
    # By label, ``number`` units of each in the order of a random permutation of examples.
    waiting: dict[str, list[Unit]] = {}
    for i in draw.permutation(len(examples)).tolist():
        units = units_of(examples[i])
        order_of_units = draw.permutation(len(units)).tolist()
        for j in () if is_scored(examples[i]) else order_of_units:
            kept = waiting.setdefault(units[j].label, [])
            if len(kept) < number:
                kept.append(units[j])
    labels = sorted(waiting)
    order = [labels[i] for i in draw.permutation(len(labels))]
    shots: list[Unit] = []
    for place in range(number):
        shots += [waiting[label][place] for label in order if place < len(waiting[label])]
        if len(shots) >= number:
            break
    shots = shots[:number]
    return [shots[i] for i in draw.permutation(len(shots))]
