"""How unsure a model is of one example, from the probabilities of its classes.

A tagger is unsure of each token by itself; a sentence has the mean of its tokens. A sum would choose the
longest sentences, which cost most to label (Shen et al. 2018, arXiv 1707.05928, divide by the length too).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fangyan.selection.strategies import Uncertainty


def entropy(log_probabilities_UC: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the entropy of each unit's classes in nats, (U,)."""
    logs = log_probabilities_UC.astype(np.float64)
    entropy_U: NDArray[np.float64] = -(np.exp(logs) * np.maximum(logs, -1e3)).sum(1)  # 0 log 0 is 0
    return entropy_U


def margin(log_probabilities_UC: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return 1 minus how far the best class of each unit is before the next, in probability, (U,)."""
    if log_probabilities_UC.shape[1] < 2:
        return np.zeros(len(log_probabilities_UC))
    two = np.partition(np.exp(log_probabilities_UC.astype(np.float64)), -2, axis=1)[:, -2:]
    margin_U: NDArray[np.float64] = 1.0 - (two[:, 1] - two[:, 0])
    return margin_U


def least_confidence(log_probabilities_UC: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the negative log-probability of each unit's best class, (U,): MNLP, where it is averaged."""
    best_U: NDArray[np.float64] = log_probabilities_UC.astype(np.float64).max(1)
    return -best_U


UNCERTAINTIES: dict[Uncertainty, Callable[[NDArray[np.float32]], NDArray[np.float64]]] = {
    "entropy": entropy,
    "margin": margin,
    "least_confidence": least_confidence,
}


def uncertainty(log_probabilities_UC: NDArray[np.float32], kind: Uncertainty) -> float:
    """Return how unsure a model is of an example; more is less sure.

    Args:
        log_probabilities_UC: of the classes of each of its units, (U, C); without units there is no doubt.
        kind: how it is measured.
    """
    if not len(log_probabilities_UC):
        return 0.0
    return float(UNCERTAINTIES[kind](log_probabilities_UC).mean())
