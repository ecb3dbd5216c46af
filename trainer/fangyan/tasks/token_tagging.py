"""A tag for every token: segmentation, parts of speech, entities, or any labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fangyan.data.encode import Encoder, Window
from fangyan.data.examples import Example
from fangyan.errors import UserError
from fangyan.recipe import Task
from fangyan.tasks.decode import SpanDecoder, WordDecoder
from fangyan.tasks.scores import Scores, entity_scores, token_accuracy, word_scores

Scheme = Literal["words", "entities", "labels"]


class TokenTagging:
    """Labels, scores and decoding of a tagging task.

    Args:
        labels: the tag set, in the order of the head's outputs.
        scheme: see :class:`fangyan.recipe.Task`.
    """

    name = "token_tagging"
    peft_type = "TOKEN_CLS"
    lower_is_better = False
    unit = "percent"

    def __init__(self, labels: list[str], scheme: Scheme):
        self.labels = labels
        self.scheme = scheme
        self._index = {label: i for i, label in enumerate(labels)}
        self._decoder: WordDecoder | SpanDecoder | None = None
        if scheme != "labels":
            self._decoder = WordDecoder(labels) if scheme == "words" else SpanDecoder(labels)

    @classmethod
    def from_data(cls, settings: Task, parts: dict[str, list[Example]]) -> TokenTagging:
        """The tag set of the data, or the recipe's; both prefixes of every span type are in it."""
        found = sorted({tag for part in parts.values() for example in part for tag in example.tags or ()})
        scheme = infer_scheme(found) if settings.scheme == "auto" else settings.scheme
        if settings.labels is not None:
            return cls(settings.labels, scheme)
        if scheme == "labels":
            return cls(found, scheme)
        types = sorted({tag[2:] for tag in found if tag != "O"})
        outside = ["O"] if "O" in found else []
        return cls(outside + [f"{prefix}-{kind}" for kind in types for prefix in "BI"], scheme)

    @property
    def metric(self) -> str:
        """The score that says which of two models is better."""
        return {"words": "joint_f1", "entities": "entity_f1", "labels": "token_accuracy"}[self.scheme]

    @property
    def score_names(self) -> list[str]:
        """All scores that :meth:`score` gives."""
        return list(self.score([], []))

    def classes(self, example: Example) -> list[int]:
        """The head's output for each of the example's tags."""
        assert example.tags is not None
        for token, tag in zip(example.tokens, example.tags, strict=True):
            if tag not in self._index:
                raise UserError(
                    f"{example.source}: tag {tag!r} at token {token!r} is not in the tag set of "
                    f"{len(self.labels)}: {', '.join(self.labels[:8])}{', …' if len(self.labels) > 8 else ''}"
                )
        return [self._index[tag] for tag in example.tags]

    def encode(self, examples: Sequence[Example], encoder: Encoder) -> list[list[Window]]:
        """The windows of each example, with targets where it has tags."""
        return [
            encoder.windows(example.tokens, None if example.tags is None else self.classes(example))
            for example in examples
        ]

    def decode(self, log_probabilities_TC: NDArray[np.float32]) -> tuple[str, ...]:
        """The tags of a sentence from its tokens' log-probabilities, (tokens, C)."""
        if self._decoder is None:
            return tuple(self.labels[i] for i in log_probabilities_TC.argmax(axis=1))
        return tuple(self.labels[i] for i in self._decoder(log_probabilities_TC))

    def score(self, examples: Sequence[Example], predicted: Sequence[tuple[str, ...]]) -> Scores:
        """All scores of the scheme, in percent."""
        gold = [example.tags or () for example in examples]
        scores = {"token_accuracy": token_accuracy(gold, predicted)}
        if self.scheme == "words":
            scores |= word_scores(gold, predicted)
        elif self.scheme == "entities":
            scores |= entity_scores(gold, predicted)
        return scores


def infer_scheme(tags: Sequence[str]) -> Scheme:
    """``words`` if every tag has a B-/I- prefix, ``entities`` if there is also ``O``, else ``labels``."""
    rest = [tag for tag in tags if tag[:2] not in ("B-", "I-")]
    if not rest:
        return "words"
    return "entities" if rest == ["O"] else "labels"
