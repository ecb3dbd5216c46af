"""Precision, recall and F1 of each tag, entity type or word tag, and the tags that are confused."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fangyan.tasks.report import ClassScores, Confusion, Report
from fangyan.tasks.token_classification.metrics import Tags, cut_sentences, word_spans
from fangyan.tasks.token_classification.scheme import Scheme

_UNITS: dict[Scheme, str] = {"plain": "tag", "iob2": "entity", "segmentation": "word"}
# Pairs that a report has.
_CONFUSIONS = 50


def tag_report(gold: Sequence[Tags], predicted: Sequence[Tags], scheme: Scheme) -> Report:
    """Return the report of predicted tags: of tags by scikit-learn, of entities and words by seqeval.

    Args:
        gold: tags of each sentence: IOB2, or its like for a segmentation.
        predicted: as many.
        scheme: what the tags mark.
    """
    pairs = Counter(
        (left, right)
        for sentences in zip(gold, predicted, strict=True)
        for left, right in zip(*sentences, strict=True)
        if left != right
    )
    confusions = [Confusion(*pair, count) for pair, count in pairs.most_common(_CONFUSIONS)]
    if scheme == "segmentation":
        gold, predicted = ([as_entities(tags) for tags in side] for side in (gold, predicted))
    found = _by_tag(gold, predicted) if scheme == "plain" else _by_span(gold, predicted)
    classes = []
    for name, scores in found.items():
        precision, recall, f1 = (100.0 * float(scores[key]) for key in ("precision", "recall", "f1-score"))
        classes.append(ClassScores(name, precision, recall, f1, int(scores["support"])))
    classes.sort(key=lambda scores: (-scores.support, scores.name))
    return Report(_UNITS[scheme], classes, confusions)


def as_entities(tags: Tags) -> list[str]:
    """Return a segmentation as strict IOB2: every token of a word has the tag of its first."""
    return [
        f"{'B' if i == start else 'I'}-{tag}"
        for start, end, tag in word_spans(tags)
        for i in range(start, end)
    ]


def _by_tag(gold: Sequence[Tags], predicted: Sequence[Tags]) -> Mapping[str, Mapping[str, Any]]:
    from sklearn.metrics import classification_report

    flat = [[tag for tags in side for tag in tags] for side in (gold, predicted)]
    labels = sorted({tag for side in flat for tag in side})
    if not labels:  # scikit-learn takes no empty list
        return {}
    report = classification_report(*flat, labels=labels, output_dict=True, zero_division=0)
    return {label: report[label] for label in labels}


def _by_span(gold: Sequence[Tags], predicted: Sequence[Tags]) -> Mapping[str, Mapping[str, Any]]:
    from seqeval.metrics import classification_report
    from seqeval.scheme import IOB2

    sides = cut_sentences(gold, predicted)
    if not any(tag != "O" for side in sides for tags in side for tag in tags):
        return {}
    with warnings.catch_warnings():
        # seqeval warns where a type is never predicted; the zero in the score says it.
        warnings.simplefilter("ignore")
        report = classification_report(*sides, mode="strict", scheme=IOB2, output_dict=True, zero_division=0)
    return {name: scores for name, scores in report.items() if not name.endswith(" avg")}
