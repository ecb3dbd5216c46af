"""A trained model that finds answers in use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from fangyan.data.example import Annotation, Example
from fangyan.errors import UserError
from fangyan.tasks.extractive_qa.decoding import Answer
from fangyan.tasks.predictor import Prediction, Predictor

if TYPE_CHECKING:
    from fangyan.tasks.extractive_qa.task import ExtractiveQA

# Questions answered together: enough to fill a batch of evaluation.
CHUNK = 64

# From examples to the answer of each.
Find = Callable[[Sequence[Example]], list[Answer]]


@dataclass(frozen=True, slots=True)
class Answered(Prediction):
    """An answered question.

    Attributes:
        question: the question.
        context: the text with the answer.
        answer: a part of the context; "" where it has none.
        start: the answer's first character in the context, counted from 0; -1 where it has none.
        score: probability of the answer, or of none.
    """

    question: str
    context: str
    answer: str
    start: int
    score: float

    def __str__(self) -> str:
        """Return the answer alone."""
        return self.answer

    @override
    def pieces(self) -> Iterator[str]:
        """Yield the answer."""
        yield self.answer

    @override
    def record(self) -> dict[str, Any]:
        """Return question, context and answer, where it starts, and its probability."""
        return {
            "question": self.question,
            "context": self.context,
            "answer": self.answer,
            "start": self.start,
            "score": round(self.score, 4),
        }


class AnswerFinder(Predictor):
    """A model that finds answers; see :class:`fangyan.tasks.task.Predictor`.

    Args:
        task: what the model has learned.
        find: the model.
    """

    def __init__(self, task: ExtractiveQA, find: Find):
        self.task = task
        self._find = find

    @override
    def predict(self, texts: Iterable[str]) -> list[Answered]:
        """Answer each question; behind it stand a tab and its context."""
        return list(self.stream(texts))

    @override
    def stream(
        self, texts: Iterable[str], *, interactive: bool = False, options: Mapping[str, Any] | None = None
    ) -> Iterator[Answered]:
        """Yield answers; see :class:`fangyan.tasks.task.Predictor`. There are no options."""
        for name in options or {}:
            raise UserError(f"{name}: is for models that write text, found one that finds answers")
        source = iter(texts)
        while chunk := list(islice(source, 1 if interactive else CHUNK)):
            examples = [_example(text) for text in chunk]
            told = [self.told(example) for example in examples]
            for example, (start, end, score) in zip(examples, self._find(told), strict=True):
                context = example.fields["context"]
                answer = context[start:end] if start >= 0 else ""
                yield Answered(example.fields["question"], context, answer, start, score)

    @override
    def annotate(self, examples: Iterable[Example], probabilities: int = 0) -> Iterator[Annotation]:
        """Yield the answer of each example; see :class:`fangyan.tasks.task.Predictor`."""
        source = iter(examples)
        while chunk := list(islice(source, CHUNK)):
            told = [self.told(example) for example in chunk]
            for example, (start, end, score) in zip(chunk, self._find(told), strict=True):
                text = example.fields["context"][start:end] if start >= 0 else ""
                values: dict[str, Any] = {"answers": [{"text": text, "start": start}] if start >= 0 else []}
                if probabilities:
                    values["probabilities"] = [[text, round(score, 4)]]
                yield Annotation(values=values)


def _example(text: str) -> Example:
    question, tab, context = text.partition("\t")
    if not tab or "\t" in context or not question.strip() or not context.strip():
        raise UserError(
            f"predict: {text[:60]!r} has {text.count(chr(9))} tabs, expected a question and its context with "
            "one between"
        )
    return Example({"question": question, "context": context}, "", "")
