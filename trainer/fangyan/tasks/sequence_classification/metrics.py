"""Metrics of predicted labels, by scikit-learn and SciPy; in percent."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fangyan.tasks.report import ClassScores, Confusion, Report
from fangyan.tasks.sequence_classification.labels import Kind
from fangyan.tasks.task import Metrics

METRICS: dict[Kind, tuple[str, ...]] = {
    "single_label_classification": ("macro_f1", "weighted_f1", "accuracy"),
    "multi_label_classification": ("macro_f1", "weighted_f1", "micro_f1", "exact_match"),
    "regression": ("spearman", "pearson"),
}
# Pairs that a report has.
_CONFUSIONS = 50


def label_metrics(kind: Kind, gold: Sequence[Any], predicted: Sequence[Any]) -> Metrics:
    """Return the metrics of a kind of labels; all are 0 where nothing can be computed.

    Args:
        kind: of the labels.
        gold: a class, the classes, or the number of each text.
        predicted: as many.
    """
    if not gold:
        return dict.fromkeys(METRICS[kind], 0.0)
    if kind == "regression":
        return _correlations(np.asarray(gold, dtype=np.float64), np.asarray(predicted, dtype=np.float64))
    return _class_metrics(kind, gold, predicted)


def _class_metrics(kind: Kind, gold: Sequence[Any], predicted: Sequence[Any]) -> Metrics:
    from sklearn.metrics import f1_score

    right = sum(map(same_labels, gold, predicted)) / len(gold)
    if kind == "multi_label_classification":
        gold, predicted, _ = _indicators(gold, predicted)
    found = {}
    for name in METRICS[kind]:
        average, is_f1, _ = name.partition("_f1")
        if is_f1 and len(gold) and np.size(gold):
            found[name] = 100.0 * float(f1_score(gold, predicted, average=average, zero_division=0))
        else:
            found[name] = 0.0 if is_f1 else 100.0 * right
    return found


def same_labels(gold: Any, predicted: Any) -> bool:
    """Return whether two labels are the same; the order of several does not matter."""
    if isinstance(gold, tuple):
        return set(gold) == set(predicted)
    return bool(gold == predicted)


def _correlations(gold: NDArray[np.float64], predicted: NDArray[np.float64]) -> Metrics:
    from scipy.stats import pearsonr, spearmanr

    if len(gold) < 2 or np.ptp(gold) == 0.0 or np.ptp(predicted) == 0.0:
        return {"spearman": 0.0, "pearson": 0.0}
    with warnings.catch_warnings():
        # Of predictions that hardly differ: their correlation is what it is.
        warnings.simplefilter("ignore", RuntimeWarning)
        return {
            "spearman": 100.0 * float(spearmanr(gold, predicted).statistic),
            "pearson": 100.0 * float(pearsonr(gold, predicted).statistic),
        }


def _indicators(gold: Sequence[Any], predicted: Sequence[Any]) -> tuple[Any, Any, list[str]]:
    """Return which classes each text has, (texts, classes), of both sides, and the classes' names."""
    from sklearn.preprocessing import MultiLabelBinarizer

    classes = sorted({name for side in (gold, predicted) for labels in side for name in labels})
    binarizer = MultiLabelBinarizer(classes=classes)
    if not classes:
        return np.zeros((len(gold), 0)), np.zeros((len(gold), 0)), classes
    return binarizer.fit_transform(gold), binarizer.transform(predicted), classes


def label_report(kind: Kind, gold: Sequence[Any], predicted: Sequence[Any]) -> Report | None:
    """Return scores of each class and the classes that are confused; None of numbers."""
    from sklearn.metrics import classification_report

    if kind == "regression":
        return None
    confusions: Counter[tuple[str, str]] = Counter()
    left, right, names = gold, predicted, sorted({*gold, *predicted})
    if kind == "multi_label_classification":
        left, right, names = _indicators(gold, predicted)
    else:
        confusions.update(pair for pair in zip(gold, predicted, strict=True) if pair[0] != pair[1])
    classes = []
    if names:
        labels = range(len(names)) if kind == "multi_label_classification" else names
        found = classification_report(
            left, right, labels=labels, target_names=names, output_dict=True, zero_division=0
        )
        for name in names:
            scores = found[name]
            precision, recall, f1 = (
                100.0 * float(scores[key]) for key in ("precision", "recall", "f1-score")
            )
            classes.append(ClassScores(name, precision, recall, f1, int(scores["support"])))
    classes.sort(key=lambda scores: (-scores.support, scores.name))
    pairs = [Confusion(*pair, count) for pair, count in confusions.most_common(_CONFUSIONS)]
    return Report("class", classes, pairs, "texts")
