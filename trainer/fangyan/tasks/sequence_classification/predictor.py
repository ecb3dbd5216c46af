"""A trained classifier of texts in use."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from fangyan.data.example import Annotation, Example
from fangyan.errors import UserError
from fangyan.tasks.predictor import Prediction, Predictor, Scored
from fangyan.tasks.sequence_classification.outputs import TextOutput

if TYPE_CHECKING:
    from fangyan.tasks.sequence_classification.task import SequenceClassification

# Texts classified together: enough to fill a batch of evaluation.
CHUNK = 256

# From examples, and whether to return what the head reads, too, to the output of the model for each.
Score = Callable[[Sequence[Example], bool], list[TextOutput]]


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
            for text, (_, scores_C, _) in zip(chunk, self._score(examples, False), strict=True):
                yield Classified(text, self.task.label(scores_C), self.task.probabilities(scores_C))

    @override
    def annotate(self, examples: Iterable[Example], probabilities: int = 0) -> Iterator[Annotation]:
        """Yield the label of each example; see :class:`fangyan.tasks.task.Predictor`."""
        source = iter(examples)
        while chunk := list(islice(source, CHUNK)):
            self._check_pairs(chunk[0])
            for _, scores_C, _ in self._score([self.told(example) for example in chunk], False):
                values: dict[str, Any] = {"label": _as_json(self.task.label(scores_C))}
                if probabilities and self.task.kind != "regression":
                    likely = islice(self.task.probabilities(scores_C).items(), probabilities)
                    values["probabilities"] = [[name, round(probability, 4)] for name, probability in likely]
                yield Annotation(values=values)

    @override
    def score(self, examples: Iterable[Example], hidden: bool = False) -> Iterator[Scored]:
        """Yield the log-probabilities of each text's classes; see :class:`fangyan.tasks.task.Predictor`."""
        if self.task.kind != "single_label_classification":
            found = "numbers" if self.task.kind == "regression" else "any number of classes"
            raise UserError(
                f"expected a tagger, or a classifier of one class per text, found a model of {found}"
            )
        source = iter(examples)
        while chunk := list(islice(source, CHUNK)):
            self._check_pairs(chunk[0])
            for _, scores_C, hidden_H in self._score([self.told(example) for example in chunk], hidden):
                log_probabilities_C = scores_C - np.logaddexp.reduce(scores_C)
                hidden_UH = None if hidden_H is None else hidden_H[None]
                yield Scored(log_probabilities_C[None], np.array([scores_C.argmax()]), hidden_UH)

    @override
    def corrected(self, example: Example, labels: Sequence[str]) -> Annotation:
        """Return a class as a person gives it; see :class:`fangyan.tasks.task.Predictor`."""
        (label,) = labels
        if not self.knows(label):
            raise UserError(f"{example.source}: class {label!r}, expected one of {', '.join(self.labels)}")
        return Annotation(values={"label": _as_json(label)})

    @property
    @override
    def labels(self) -> Sequence[str]:
        """Return the classes."""
        return self.task.labels

    def _check_pairs(self, example: Example) -> None:
        """Refuse a pair where the model reads one text, and one text where it reads a pair."""
        if ("pair" in example.fields) != self.task.has_pairs:
            texts, more = ("two texts", "pair: NAME, ") if self.task.has_pairs else ("one text", "")
            raise UserError(
                f"{example.source}: the model reads {texts}, expected --format '{{format: jsonl, "
                f"columns: {{text: NAME, {more}label: NAME}}}}' with the names in the file"
            )

    @override
    def example(self, text: str, source: str = "") -> Example:
        """Return a text; of a pair, both, which have a tab between them; see the base class."""
        if not self.task.has_pairs:
            return Example({"text": text}, source, text)
        first, tab, second = text.partition("\t")
        if not tab or "\t" in second:
            raise UserError(
                f"{source or 'predict'}: {text[:60]!r} has {text.count(chr(9))} tabs, expected a pair of "
                "texts with one between"
            )
        return Example({"text": first, "pair": second}, source, text)


def _as_json(label: str | tuple[str, ...] | float) -> Any:
    """Return a label as files have it: classes that are numbers, true or false were read as their text."""
    if isinstance(label, str) and re.fullmatch(r"true|false|0|-?[1-9]\d*", label):
        return json.loads(label)
    return list(label) if isinstance(label, tuple) else label
