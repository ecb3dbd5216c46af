"""What may be said of two lists of times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ratio:
    """The other's time over one's own, round by round: above 1 is faster than the other.

    Attributes:
        median: of the rounds' ratios.
        low, high: their 10th and 90th percentile.
    """

    median: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the spread is smaller than the effect: otherwise there is no ratio to report."""
        return not self.low <= 1.0 <= self.high

    def as_dict(self) -> dict[str, float | bool]:
        return {"median": self.median, "low": self.low, "high": self.high, "clear": self.clear}


def ratio(other: Sequence[float], own: Sequence[float]) -> Ratio:
    """Both sides measured in the same rounds."""
    rounds = np.asarray(other) / np.asarray(own)
    low, median, high = np.quantile(rounds, (0.1, 0.5, 0.9))
    return Ratio(float(median), float(low), float(high))


def median_interval(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """Bootstrap interval of the median (Efron 1979), the same for the same values."""
    numbers = np.asarray(values)
    draws = np.random.default_rng(0).integers(0, len(numbers), (4000, len(numbers)))
    medians = np.median(numbers[draws], axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(medians, (tail, 1 - tail))
    return float(low), float(high)


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Exponent of the cost's growth: a straight line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
