"""Rounds that have been measured, handed to pytest-benchmark for its statistics, its table and its files.

pytest-benchmark finishes one benchmark before it starts the next. Here all implementations take turns in
every round, some of them in processes of their own. The rounds are therefore measured first, and the timer of
pytest-benchmark is a clock that advances by them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # bench/gpu.py imports the harness without pytest-benchmark
    from pytest_benchmark.fixture import BenchmarkFixture


class MeasuredClock:
    """A clock that stands still until it is told how long something took."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def read(self) -> float:
        """Return the seconds since the start: a ``timer`` of pytest-benchmark."""
        return self._seconds

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self._seconds += seconds


CLOCK = MeasuredClock()


def replay(benchmark: BenchmarkFixture, rounds: Sequence[float]) -> None:
    """Let pytest-benchmark time rounds that have been measured.

    Args:
        benchmark: the fixture, of a test marked ``benchmark(timer=CLOCK.read)``.
        rounds: seconds of a call, one per round.

    Raises:
        ValueError: if the test has another timer.
    """
    remaining = iter(rounds)
    benchmark.pedantic(lambda: CLOCK.advance(next(remaining)), rounds=len(rounds), iterations=1)
    stats = benchmark.stats  # None with --benchmark-disable
    if stats is not None and not math.isclose(stats["total"], sum(rounds), rel_tol=1e-6):
        raise ValueError(f"{benchmark.name}: its timer is another, expected CLOCK.read")
