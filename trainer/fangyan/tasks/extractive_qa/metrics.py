"""Exact match and F1 of answers, as SQuAD's evaluation has them, for any script; in percent."""

from __future__ import annotations

import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fangyan.data.example import Example
from fangyan.data.masking import words_of
from fangyan.tasks.resampling import Counts, ResampledMetrics, ratio
from fangyan.tasks.task import Metrics

_ENGLISH = "the"
_ARTICLES = ("a", "an", _ENGLISH)
METRICS = ("f1", "exact_match")
# Where some questions have no answer: F1 of those that have one, and of those that have none.
PARTS = ("answerable_f1", "unanswerable_f1")


def is_english(example: Example) -> bool:
    """Return whether an example is in English: whether "the" is a word of it."""
    return any(_ENGLISH in example.fields[name].lower().split() for name in ("context", "question"))


def normalize(text: str, english: bool) -> list[str]:
    """Return the words of an answer that are compared; characters, of scripts without spaces.

    They are without case, punctuation and, in English, articles. An answer of nothing else stays as it is.
    """
    lowered = unicodedata.normalize("NFC", text).lower()
    words = words_of("".join(character for character in lowered if not _is_punctuation(character)))
    if english:
        words = [word for word in words if word not in _ARTICLES]
    return words or words_of(lowered)


def _is_punctuation(character: str) -> bool:
    # What SQuAD's script strips is more than Unicode calls so: $+<=>^`|~.
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def scores(predicted: str, answers: Sequence[str], english: bool) -> tuple[float, float]:
    """Return F1 and exact match of a prediction, in [0, 1], with the best of the right answers.

    Args:
        predicted: "" for no answer.
        answers: none where there is no answer.
        english: whether articles do not count.
    """
    found = normalize(predicted, english)
    pairs = [_scores(found, normalize(answer, english)) for answer in answers or ("",)]
    return max(f1 for f1, _ in pairs), max(exact for _, exact in pairs)


def _scores(found: list[str], right: list[str]) -> tuple[float, float]:
    exact = float(found == right)
    common = (Counter(found) & Counter(right)).total()
    if not found or not right or not common:
        return exact, exact
    return 2.0 * common / (len(found) + len(right)), exact


def answer_metrics(names: Sequence[str], examples: Sequence[Example], predicted: Sequence[str]) -> Metrics:
    """Return the metrics of predicted answers; 0 where there is nothing to compute one of.

    Args:
        names: of the metrics.
        examples: with their answers.
        predicted: the answer to each, "" for none.
    """
    return answer_counts(names, examples, predicted).metrics()


def answer_counts(names: Sequence[str], examples: Sequence[Example], predicted: Sequence[str]) -> Counts:
    """Return what computes the metrics of resampled questions; see :func:`answer_metrics`."""
    counts_EMK = np.zeros((len(examples), len(names), 2))  # of each metric a sum, and what it is a mean of
    for row_MK, example, answer in zip(counts_EMK, examples, predicted, strict=True):
        right = [str(part["text"]) for part in example.fields["answers"]]
        f1, exact = scores(answer, right, is_english(example))
        part = {"f1": f1, "exact_match": exact, PARTS[0 if right else 1]: f1}
        for i, name in enumerate(names):
            if name in part:
                row_MK[i] = part[name], 1.0
    return Counts(counts_EMK.reshape(len(examples), 2 * len(names)), partial(_means, names))


def _means(names: Sequence[str], sums_RK: NDArray[np.float64]) -> ResampledMetrics:
    return {name: 100.0 * ratio(sums_RK[:, 2 * i], sums_RK[:, 2 * i + 1]) for i, name in enumerate(names)}
