"""A trained tagger in use: text in, tags out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from typing_extensions import override

from fangyan.errors import UserError
from fangyan.tasks.task import Prediction, Predictor, Task, TokenUnit
from fangyan.tasks.token_classification.metrics import word_spans
from fangyan.tasks.token_classification.scheme import Scheme

Sentence = tuple[str, ...]
Tag = Callable[[Sequence[Sentence]], list[tuple[str, ...]]]

# Texts tagged together: enough to fill a batch of evaluation.
CHUNK = 256


@dataclass(frozen=True, slots=True)
class TaggedText(Prediction):
    """A tagged sentence.

    Attributes:
        tokens: the characters or words that were tagged.
        tags: one per token.
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
        tag: from sentences, as tokens, to their tags.
        scheme: of the tags.
        token_unit: into what a text is cut.
    """

    def __init__(self, task: Task, tag: Tag, scheme: Scheme, token_unit: TokenUnit):
        self.task = task
        self._tag = tag
        self._scheme = scheme
        self._token_unit = token_unit

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
            sentences = [self._split(text) for text in chunk]
            for tokens, tags in zip(sentences, self._tag(sentences), strict=True):
                yield TaggedText(tokens, tags, self._words(tokens, tags))

    def _split(self, text: str) -> tuple[str, ...]:
        words = text.split()
        return tuple("".join(words)) if self._token_unit == "characters" else tuple(words)

    def _words(self, tokens: tuple[str, ...], tags: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
        if self._scheme != "segmentation":
            return tuple(zip(tokens, tags, strict=True))
        joint = "" if self._token_unit == "characters" else " "
        return tuple((joint.join(tokens[start:end]), tag) for start, end, tag in word_spans(tags))
