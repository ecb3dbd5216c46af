"""What each tagged sentence adds to the metrics of its scheme."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fangyan.tasks.resampling import Counts, ResampledMetrics, ratio
from fangyan.tasks.token_classification.metrics import Tags, count_words, cut_sentences
from fangyan.tasks.token_classification.scheme import Scheme


def tag_counts(gold: Sequence[Tags], predicted: Sequence[Tags], scheme: Scheme) -> Counts:
    """Return what computes the metrics of resampled sentences, as :func:`tag_metrics` has them.

    Args:
        gold: tags of each sentence: IOB2, or its like for a segmentation.
        predicted: as many.
        scheme: what the tags mark.
    """
    rows = []
    for pair in zip(gold, predicted, strict=True):
        row = [sum(left == right for left, right in zip(*pair, strict=True)), len(pair[0])]
        if scheme == "segmentation":
            row += count_words(*pair)
        elif scheme == "iob2":
            row += _count_entities(*pair)
        rows.append(row)
    compute = {"segmentation": _words, "iob2": _entities, "plain": _tokens}[scheme]
    return Counts(np.array(rows, dtype=np.float64), compute)


def _count_entities(gold: Tags, predicted: Tags) -> tuple[int, int, int]:
    """Return a sentence's entities that are both, of gold, and predicted, as seqeval finds them."""
    from seqeval.scheme import IOB2, Entities

    found = [Entities(side, IOB2).entities for side in cut_sentences([gold], [predicted])]
    same = sum(len(set(left) & set(right)) for left, right in zip(*found, strict=True))
    return same, *(sum(map(len, side)) for side in found)  # type: ignore[return-value]


def _tokens(sums_RK: NDArray[np.float64]) -> ResampledMetrics:
    right, tokens = sums_RK.T[:2]
    return {"token_accuracy": 100.0 * ratio(right, tokens)}


def _words(sums_RK: NDArray[np.float64]) -> ResampledMetrics:
    gold, predicted, same_span, same_word, right_tag = sums_RK.T[2:]
    return _tokens(sums_RK) | {
        "pos_accuracy": 100.0 * ratio(right_tag, gold),
        "segmentation_f1": 200.0 * ratio(same_span, gold + predicted),
        "joint_f1": 200.0 * ratio(same_word, gold + predicted),
    }


def _entities(sums_RK: NDArray[np.float64]) -> ResampledMetrics:
    same, gold, predicted = sums_RK.T[2:]
    return _tokens(sums_RK) | {
        "entity_precision": 100.0 * ratio(same, predicted),
        "entity_recall": 100.0 * ratio(same, gold),
        "entity_f1": 200.0 * ratio(same, gold + predicted),
    }
