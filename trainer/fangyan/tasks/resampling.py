"""Metrics of many resamples of examples at once, from what each example adds to them.

A bootstrap scores thousands of resamples. What a task's metrics are computed of, such as how many words of a
sentence are right, is counted once for each example; a resample is how often each of them occurs in it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]
# By name, of each of R resamples: (R,).
ResampledMetrics = dict[str, NDArray[np.float64]]


class Resampler(ABC):
    """The metrics of resamples of E examples, which :meth:`Task.metrics` would return of each."""

    @abstractmethod
    def __len__(self) -> int:
        """Return how many examples there are, E."""

    @abstractmethod
    def __call__(self, weights_RE: Weights) -> ResampledMetrics:
        """Return the metrics of each resample.

        Args:
            weights_RE: how often each example occurs in each resample: whole numbers, (R, E).
        """

    @abstractmethod
    def subset(self, indices: NDArray[np.int64]) -> Resampler:
        """Return the same of some of the examples."""

    def metrics(self) -> dict[str, float]:
        """Return the metrics of all examples, each once."""
        return {name: float(values[0]) for name, values in self(np.ones((1, len(self)))).items()}


class Counts(Resampler):
    """Metrics that follow from sums over examples.

    Args:
        counts_EK: what each example adds to each of K sums.
        compute: returns the metrics of sums, (R, K).
    """

    def __init__(
        self, counts_EK: NDArray[np.float64], compute: Callable[[NDArray[np.float64]], ResampledMetrics]
    ):
        self._counts_EK, self._compute = counts_EK, compute

    def __len__(self) -> int:
        """Return how many examples there are."""
        return len(self._counts_EK)

    def __call__(self, weights_RE: Weights) -> ResampledMetrics:
        """Return the metrics of the sums of each resample."""
        return self._compute(weights_RE @ self._counts_EK)

    def subset(self, indices: NDArray[np.int64]) -> Counts:
        """Return the same of some of the examples."""
        return Counts(self._counts_EK[indices], self._compute)


def ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a quotient of each pair of numbers; 0 where there is nothing to divide by."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
