"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds of this process's part of a run, from the loading of its data on.

    On a GPU, seconds are right where something waits for it: at each read of the losses, in evaluations and
    checkpoints, and so over steps between two reads.

    Attributes:
        places: of the batches that the steps have computed, those with a sub-word and those of padding.
        tokens: sub-words in them, padding left out. On one rank of several: its own.
    """

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._times: dict[str, int] = {}
        self._step_tokens = 0
        self._started = self._lap_seconds = 0.0
        self._lap_tokens = 0
        self.places = self.tokens = self.micro_batches = 0

    def loaded(self) -> None:
        """Note that data and model are there, and that the run begins."""
        self._add("start-up", self._began)

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Count the block's time to a part; one within another is counted to both."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._add(part, started)

    def start_step(self) -> None:
        """Start the clock of a step."""
        self._started = time.perf_counter()

    def stop_step(self, tokens: int) -> None:
        """Stop the clock after a step of ``tokens`` sub-words, over all ranks."""
        self._add("steps", self._started)
        self._step_tokens += tokens

    def count_batch(self, places: int, tokens: int) -> None:
        """Count a micro-batch that a step has computed."""
        self.places += places
        self.tokens += tokens
        self.micro_batches += 1

    def _add(self, part: str, started: float) -> None:
        self._seconds[part] = self.seconds(part) + time.perf_counter() - started
        self._times[part] = self.times(part) + 1

    def seconds(self, part: str) -> float:
        """Return the seconds of a part so far."""
        return self._seconds.get(part, 0.0)

    def times(self, part: str) -> int:
        """Return how often there has been a part so far."""
        return self._times.get(part, 0)

    @property
    def total(self) -> float:
        """Return the seconds since the clock was made."""
        return time.perf_counter() - self._began

    @property
    def tokens_per_second(self) -> float:
        """Return the mean over the steps so far, over all ranks."""
        return _rate(self._step_tokens, self.seconds("steps"))

    def lap(self) -> float:
        """Return the mean of the sub-words per second since the last lap."""
        seconds, tokens = self.seconds("steps"), self._step_tokens
        rate = _rate(tokens - self._lap_tokens, seconds - self._lap_seconds)
        self._lap_seconds, self._lap_tokens = seconds, tokens
        return rate

    def record(self) -> dict[str, float]:
        """Return the seconds of each part and of all else, as ``metrics.jsonl`` has them."""
        parts = {f"{part}_s": self.seconds(part) for part in ("steps", "evaluation", "checkpoint")}
        return {**parts, "other_s": self.total - sum(parts.values())}


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds else 0.0
