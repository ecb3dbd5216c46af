"""Summaries of rounds: medians with their spread, ratios, and the growth of a cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Summary:
    """The median of some rounds and their spread.

    Attributes:
        median: median of the rounds.
        low, high: their 10th and 90th percentile.
        rounds: how many there were.
    """

    median: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True)
class Ratio:
    """Another's time over one's own, round by round: above 1 is faster than the other.

    Attributes:
        median: median of the rounds' ratios.
        low, high: their 10th and 90th percentile.
    """

    median: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the difference exceeds the spread; if not, there is no ratio to report."""
        return not self.low <= 1.0 <= self.high


def summarize(rounds: Sequence[float]) -> Summary:
    """Reduce rounds to what is stored of them.

    Args:
        rounds: one measurement per round.
    """
    low, median, high = np.quantile(np.asarray(rounds), (0.1, 0.5, 0.9))
    return Summary(float(median), float(low), float(high), len(rounds))


def ratio(other: Sequence[float], own: Sequence[float]) -> Ratio:
    """Compare two implementations that were measured in the same rounds.

    Args:
        other: seconds per call of the other implementation, one per round.
        own: seconds per call of one's own, in the same order.
    """
    rounds = np.asarray(other) / np.asarray(own)
    low, median, high = np.quantile(rounds, (0.1, 0.5, 0.9))
    return Ratio(float(median), float(low), float(high))


def median_interval(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """Return a bootstrap interval of the median (Efron 1979), the same for the same values.

    Args:
        values: the sample.
        confidence: probability that the interval covers the median, such as 0.99.
    """
    sample = np.asarray(values)
    draws = np.random.default_rng(0).integers(0, len(sample), (4000, len(sample)))
    medians = np.median(sample[draws], axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(medians, (tail, 1 - tail))
    return float(low), float(high)


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Fit the exponent with which a cost grows: the slope of a line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
