"""Metrics of resampled texts: of classes by counts, of numbers by correlations with weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fangyan.tasks.resampling import Counts, ResampledMetrics, Resampler, Weights, ratio
from fangyan.tasks.sequence_classification.labels import Kind
from fangyan.tasks.sequence_classification.metrics import METRICS, same_labels


def label_resampler(kind: Kind, gold: Sequence[Any], predicted: Sequence[Any]) -> Resampler:
    """Return what computes the metrics of resampled texts, as :func:`label_metrics` has them.

    Args:
        kind: of the labels.
        gold: a class, the classes, or the number of each text.
        predicted: as many.
    """
    if kind == "regression":
        return Correlations(np.asarray(gold, dtype=np.float64), np.asarray(predicted, dtype=np.float64))
    several = kind == "multi_label_classification"
    sides = [[labels if several else (labels,) for labels in side] for side in (gold, predicted)]
    names = sorted({name for side in sides for labels in side for name in labels})
    place = {name: i for i, name in enumerate(names)}
    has_2EC = np.zeros((2, len(gold), len(names)))
    for side, texts in enumerate(sides):
        for i, labels in enumerate(texts):
            has_2EC[side, i, [place[name] for name in labels]] = 1.0
    right_E = np.array([same_labels(*pair) for pair in zip(gold, predicted, strict=True)], dtype=np.float64)
    counts_EK = np.column_stack(
        [right_E, np.ones(len(gold)), has_2EC[0] * has_2EC[1], has_2EC[0], has_2EC[1]]
    )
    return Counts(counts_EK, partial(_class_metrics, METRICS[kind]))


def _class_metrics(names: Sequence[str], sums_RK: NDArray[np.float64]) -> ResampledMetrics:
    right_R, texts_R = sums_RK[:, :2].T
    same_RC, gold_RC, predicted_RC = np.split(sums_RK[:, 2:], 3, axis=1)
    f1_RC = 2.0 * ratio(same_RC, gold_RC + predicted_RC)
    # A class that a resample has on neither side is none of its classes.
    found = {
        "accuracy": ratio(right_R, texts_R),
        "exact_match": ratio(right_R, texts_R),
        "macro_f1": ratio(f1_RC.sum(1), (gold_RC + predicted_RC > 0).sum(1).astype(np.float64)),
        "weighted_f1": ratio((f1_RC * gold_RC).sum(1), gold_RC.sum(1)),
        "micro_f1": 2.0 * ratio(same_RC.sum(1), (gold_RC + predicted_RC).sum(1)),
    }
    return {name: 100.0 * found[name] for name in names}


class Correlations(Resampler):
    """Spearman's and Pearson's correlations; 0 where a side does not vary.

    Args:
        gold_E: the right numbers.
        predicted_E: the model's.
    """

    def __init__(self, gold_E: NDArray[np.float64], predicted_E: NDArray[np.float64]):
        self._sides = gold_E, predicted_E

    def __len__(self) -> int:
        """Return how many numbers there are."""
        return len(self._sides[0])

    def __call__(self, weights_RE: Weights) -> ResampledMetrics:
        """Return the correlations of each resample."""
        values = [np.broadcast_to(side, weights_RE.shape) for side in self._sides]
        ranks = [_ranks(side, weights_RE) for side in self._sides]
        return {"spearman": _correlation(ranks, weights_RE), "pearson": _correlation(values, weights_RE)}

    def subset(self, indices: NDArray[np.int64]) -> Correlations:
        """Return the same of some of the texts."""
        gold_E, predicted_E = self._sides
        return Correlations(gold_E[indices], predicted_E[indices])


def _ranks(values_E: NDArray[np.float64], weights_RE: Weights) -> NDArray[np.float64]:
    """Return the rank of each number in each resample, the mean of ranks where numbers are equal, (R, E)."""
    order_E = values_E.argsort()
    distinct, place_E = np.unique(values_E, return_inverse=True)
    starts_D = np.searchsorted(values_E[order_E], distinct)
    counts_RD = np.add.reduceat(weights_RE[:, order_E], starts_D, axis=1)
    ranks_RD: NDArray[np.float64] = counts_RD.cumsum(1) - (counts_RD - 1.0) / 2.0
    return ranks_RD[:, place_E]


def _correlation(sides: Sequence[NDArray[np.float64]], weights_RE: Weights) -> NDArray[np.float64]:
    """Return Pearson's correlation of numbers that occur as often as their weights say, in percent, (R,)."""
    total_R1 = weights_RE.sum(1, keepdims=True)
    centred = []
    for side_RE in sides:
        mean_R1 = ratio((side_RE * weights_RE).sum(1, keepdims=True), total_R1)
        lowest = np.where(weights_RE > 0, side_RE, np.inf).min(1, keepdims=True)
        highest = np.where(weights_RE > 0, side_RE, -np.inf).max(1, keepdims=True)
        # Numbers that do not vary have no correlation, whatever rounding leaves of it.
        centred.append(np.where(highest > lowest, side_RE - mean_R1, 0.0))
    left_RE, right_RE = centred
    spread_R = np.sqrt((weights_RE * left_RE**2).sum(1) * (weights_RE * right_RE**2).sum(1))
    return 100.0 * ratio((weights_RE * left_RE * right_RE).sum(1), spread_R)
