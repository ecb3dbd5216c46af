"""A trained classifier of texts in use."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fangyan.data.example import Annotation, Example
from fangyan.errors import UserError
from fangyan.tasks.task import Prediction, Predictor

if TYPE_CHECKING:
    from fangyan.tasks.sequence_classification.task import SequenceClassification

# Texts classified together: enough to fill a batch of evaluation.
CHUNK = 256

# From examples to the outputs of the head for each, (C,).
Score = Callable[[Sequence[Example]], list[NDArray[np.float32]]]


@dataclass(frozen=True, slots=True)
class Classified(Prediction):
    """A classified text.

    Attributes:
        text: the text; of a pair, both with a tab between them.
        label: its class, its classes, or its number.
        probabilities: of each class; empty for a number.
    """

    text: str
    label: str | tuple[str, ...] | float
    probabilities: Mapping[str, float]

    def __str__(self) -> str:
        """Return the label alone: classes with commas between them, a number to four digits."""
        if isinstance(self.label, float):
            return f"{self.label:.4g}"
        return self.label if isinstance(self.label, str) else ", ".join(self.label)

    @override
    def pieces(self) -> Iterator[str]:
        """Yield the label."""
        yield str(self)

    @override
    def record(self) -> dict[str, Any]:
        """Return text, label and probabilities."""
        record: dict[str, Any] = {"text": self.text, "label": self.label}
        if self.probabilities:
            record["probabilities"] = {name: round(value, 4) for name, value in self.probabilities.items()}
        return record


class TextClassifier(Predictor):
    """A model that classifies texts; see :class:`fangyan.tasks.task.Predictor`.

    Args:
        task: what the model has learned.
        score: the model.
    """

    def __init__(self, task: SequenceClassification, score: Score):
        self.task = task
        self._score = score

    @override
    def predict(self, texts: Iterable[str]) -> list[Classified]:
        """Classify each text; a pair of texts has a tab between them."""
        return list(self.stream(texts))

    @override
    def stream(
        self, texts: Iterable[str], *, interactive: bool = False, options: Mapping[str, Any] | None = None
    ) -> Iterator[Classified]:
        """Yield classified texts; see :class:`fangyan.tasks.task.Predictor`. There are no options."""
        for name in options or {}:
            raise UserError(f"{name}: is for models that write text, found a classifier")
        source = iter(texts)
        while chunk := list(islice(source, 1 if interactive else CHUNK)):
            examples = [self.told(self.example(text)) for text in chunk]
            for text, scores_C in zip(chunk, self._score(examples), strict=True):
                yield Classified(text, self.task.label(scores_C), self.task.probabilities(scores_C))

    @override
    def annotate(self, examples: Iterable[Example], probabilities: int = 0) -> Iterator[Annotation]:
        """Yield the label of each example; see :class:`fangyan.tasks.task.Predictor`."""
        source = iter(examples)
        while chunk := list(islice(source, CHUNK)):
            if ("pair" in chunk[0].fields) != self.task.has_pairs:
                texts, more = ("two texts", "pair: NAME, ") if self.task.has_pairs else ("one text", "")
                raise UserError(
                    f"{chunk[0].source}: the model reads {texts}, expected --format '{{format: jsonl, "
                    f"columns: {{text: NAME, {more}label: NAME}}}}' with the names in the file"
                )
            for scores_C in self._score([self.told(example) for example in chunk]):
                values: dict[str, Any] = {"label": _as_json(self.task.label(scores_C))}
                if probabilities and self.task.kind != "regression":
                    likely = islice(self.task.probabilities(scores_C).items(), probabilities)
                    values["probabilities"] = [[name, round(probability, 4)] for name, probability in likely]
                yield Annotation(values=values)

    @override
    def example(self, text: str) -> Example:
        """Return a text as an example; a pair has a tab between."""
        if not self.task.has_pairs:
            return Example({"text": text}, "", "")
        first, tab, second = text.partition("\t")
        if not tab or "\t" in second:
            raise UserError(
                f"predict: {text[:60]!r} has {text.count(chr(9))} tabs, expected a pair of texts with one "
                "between"
            )
        return Example({"text": first, "pair": second}, "", "")


def _as_json(label: str | tuple[str, ...] | float) -> Any:
    """Return a label as files have it: classes that are numbers, true or false were read as their text."""
    if isinstance(label, str) and re.fullmatch(r"true|false|0|-?[1-9]\d*", label):
        return json.loads(label)
    return list(label) if isinstance(label, tuple) else label
