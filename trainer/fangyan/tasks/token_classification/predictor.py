"""A trained tagger in use: text in, tags out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fangyan.data.example import Annotation, Example
from fangyan.errors import UserError
from fangyan.tasks.predictor import Prediction, Predictor, Scored
from fangyan.tasks.probabilities import softmax
from fangyan.tasks.token_classification.metrics import word_spans
from fangyan.tasks.token_classification.recognition import broken_rule

if TYPE_CHECKING:
    from fangyan.tasks.token_classification.task import TokenClassification

# Texts tagged together: enough to fill a batch of evaluation.
CHUNK = 256


class Tagged(NamedTuple):
    """What a model says of one sentence.

    Attributes:
        labels: one per token.
        log_probabilities_TC: of all labels, (T, C), or None.
        hidden_TH: what the head reads of each token, (T, H), or None.
    """

    labels: tuple[str, ...]
    log_probabilities_TC: NDArray[np.float32] | None
    hidden_TH: NDArray[np.float32] | None = None


# From examples, and what is wanted beside labels.
Tag = Callable[[Sequence[Example], "Kept"], list[Tagged]]


class Kept(NamedTuple):
    """What outputs keep of a model beside its labels: log-probabilities, and what the head reads."""

    scores: bool = False
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class TaggedText(Prediction):
    """A tagged sentence.

    Attributes:
        tokens: the characters or words that were tagged.
        tags: one per token, as the training data has them.
        words: of a segmenter, the words found and their tags; else the tokens and theirs.
    """

    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    words: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        """Return ``word/tag`` of every word."""
        return " ".join(f"{word}/{tag}" for word, tag in self.words)

    @override
    def pieces(self) -> Iterator[str]:
        """Yield the whole sentence."""
        yield str(self)

    @override
    def record(self) -> dict[str, Any]:
        """Return tokens and tags."""
        return {"tokens": self.tokens, "tags": self.tags}


class TokenClassifier(Predictor):
    """A model that tags; see :class:`fangyan.tasks.task.Predictor`.

    Args:
        task: what the model has learned.
        tag: the model.
    """

    def __init__(self, task: TokenClassification, tag: Tag):
        self.task = task
        self._tag = tag

    @override
    def predict(self, texts: Iterable[str]) -> list[TaggedText]:
        """Tag each text: its characters, or its words between white space."""
        return list(self.stream(texts))

    @override
    def stream(
        self, texts: Iterable[str], *, interactive: bool = False, options: Mapping[str, Any] | None = None
    ) -> Iterator[TaggedText]:
        """Yield tagged texts; see :class:`fangyan.tasks.task.Predictor`. There are no options."""
        for name in options or {}:
            raise UserError(f"{name}: is for models that write text, found a tagger")
        source = iter(texts)
        while chunk := list(islice(source, 1 if interactive else CHUNK)):
            examples = [self.example(text) for text in chunk]
            told = [self.told(example) for example in examples]
            for example, (labels, *_) in zip(examples, self._tag(told, Kept()), strict=True):
                tokens, tags = example.fields["tokens"], self.task.notation.write(labels)
                yield TaggedText(tokens, tuple(tags), self._words(tokens, tags, labels))

    def annotate(self, examples: Iterable[Example], probabilities: int = 0) -> Iterator[Annotation]:
        """Yield the tags of each example, in order, for input of any length.

        Args:
            examples: with ``tokens``, and ``spaces`` where the format has them.
            probabilities: how many of each token's most likely tags to return with their probabilities, from
                the softmax of its scores, divided by the temperature. Labels that would be written as one
                tag have the sum of theirs. Decoding looks at the whole sentence, so that its tag need not be
                the most likely one.
        """
        source = iter(examples)
        while chunk := list(islice(source, CHUNK)):
            for tagged in self._tag([self.told(each) for each in chunk], Kept(scores=probabilities > 0)):
                tags = tuple(self.task.notation.write(tagged.labels))
                likely = tuple(self._most_likely(tagged, probabilities)) if probabilities > 0 else None
                yield Annotation(tags, likely, None if self.task.scheme == "plain" else tagged.labels)

    @override
    def score(self, examples: Iterable[Example], hidden: bool = False) -> Iterator[Scored]:
        """Yield the log-probabilities of each token's labels; see :class:`fangyan.tasks.task.Predictor`."""
        source, index = iter(examples), {label: i for i, label in enumerate(self.task.labels)}
        while chunk := list(islice(source, CHUNK)):
            for tagged in self._tag([self.told(each) for each in chunk], Kept(scores=True, hidden=hidden)):
                assert tagged.log_probabilities_TC is not None
                classes_T = np.array([index[label] for label in tagged.labels], dtype=np.int64)
                yield Scored(tagged.log_probabilities_TC, classes_T, tagged.hidden_TH)

    @property
    @override
    def labels(self) -> Sequence[str]:
        """Return the tag set: IOB2, or its like for a segmentation, where files may have another scheme."""
        return self.task.labels

    @override
    def knows(self, label: str) -> bool:
        """Return whether a tag, in the scheme of the file, is in the tag set."""
        return self.task.learned(label)

    @override
    def corrected(self, example: Example, labels: Sequence[str]) -> Annotation:
        """Return tags as a person gives them; see :class:`fangyan.tasks.task.Predictor`."""
        for token, tag in zip(example.fields["tokens"], labels, strict=True):
            if not self.knows(tag):
                raise UserError(f"{example.source}: tag {tag!r} at token {token!r} is not in the tag set")
        for pair in pairwise([None, *labels, None]):
            if rule := broken_rule(pair, self.task.notation, self.task.scheme):
                raise UserError(
                    f"{example.source}: {rule} breaks a rule of {self.task.notation.name}, expected tags "
                    "that keep it"
                )
        read = tuple(self.task.notation.read(labels, self.task.scheme))
        return Annotation(tuple(labels), None, None if self.task.scheme == "plain" else read)

    def _most_likely(self, tagged: Tagged, count: int) -> Iterator[tuple[tuple[str, float], ...]]:
        """Yield the most likely tags of each token, as they are written between its neighbours' tags."""
        labels, log_probabilities_TC, _ = tagged
        assert log_probabilities_TC is not None
        around = [None, *labels, None]
        # Of the probabilities alone: tags stay those of temperature 1, by which they are decoded.
        for t, scores_C in enumerate(softmax(log_probabilities_TC, self.task.temperature)):
            sums: dict[str, float] = {}
            for label, probability in zip(self.task.labels, scores_C.tolist(), strict=True):
                tag = self.task.notation.write_one(around[t], label, around[t + 2])
                sums[tag] = sums.get(tag, 0.0) + probability
            yield tuple(sorted(sums.items(), key=lambda item: -item[1])[:count])

    @override
    def example(self, text: str, source: str = "") -> Example:
        """Return a text's characters, or its words between white space; see the base class."""
        words = text.split()
        tokens = tuple("".join(words)) if self.task.token_unit == "characters" else tuple(words)
        return Example({"tokens": tokens}, source, text)

    def _words(
        self, tokens: Sequence[str], tags: Sequence[str], labels: Sequence[str]
    ) -> tuple[tuple[str, str], ...]:
        if self.task.scheme != "segmentation":
            return tuple(zip(tokens, tags, strict=True))
        joint = "" if self.task.token_unit == "characters" else " "
        return tuple((joint.join(tokens[start:end]), tag) for start, end, tag in word_spans(labels))
