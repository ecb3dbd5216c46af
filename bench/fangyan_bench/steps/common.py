"""What the steps of all tasks share: their interface, their data in rows, and how they are timed.

Tokens are sub-words with the special tokens of each sentence and without padding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from fangyan_bench.harness.memory import high_water_mark, reset_peak
from fangyan_bench.harness.op import Role
from fangyan_bench.harness.timing import Timed
from fangyan_bench.trainer_access import BenchmarkSetup

PADDED_LENGTH = 128  # of the loop that pads every sentence
EVALUATE_EVERY = 8192  # tokens, while training until a dev score
MINUTES = 5  # of training, until a dev score is given up

Observe = Callable[[int, int], bool]  # after a step, with its tokens and sentences; True ends the training


class Steps(Protocol):
    """A training in progress.

    Attributes:
        model: what is trained.
        steps: of one sample.
    """

    model: nn.Module
    steps: int

    def train(self, steps: int | None, observe: Observe) -> None:
        """Take some steps, or those of all epochs; ``observe`` ends them by returning True."""


class LearningSteps(Steps, Protocol):
    """A training whose model has a dev score."""

    def score(self) -> float:
        """Return the dev score."""


@dataclass(frozen=True)
class StepImplementation:
    """One way to train.

    Attributes:
        role: the ``baseline`` is what others are compared with.
        make: returns the training on a setup, ready for its first step.
        quick: whether ``--quick`` times it.
        learns: whether its time to a dev score is worth measuring.
        missing: returns why it cannot run here, or None.
    """

    role: Role
    make: Callable[[BenchmarkSetup], Steps]
    quick: bool = True
    learns: bool = True
    missing: Callable[[], str | None] = lambda: None


class StepTrial(Timed):
    """An implementation's steps in this process, with the methods of ``timing.Trial``."""

    def __init__(self, implementation: StepImplementation, setup: BenchmarkSetup):
        self._setup = setup
        self._before = reset_peak()
        start = time.perf_counter()
        self._training = implementation.make(self._setup)
        self._take(1)
        self._first_call_seconds = time.perf_counter() - start

    @override
    def calibrate(self, pass_name: str) -> float:
        """Return the seconds of a sample."""
        return self._take(self._training.steps)[0]

    @override
    def sample(self, pass_name: str) -> float:
        """Return the seconds per token."""
        seconds, tokens = self._take(self._training.steps)
        return seconds / tokens

    def peak_memory(self) -> int:
        """Return the bytes that model, optimizer and steps took at most."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        return high_water_mark() - self._before

    def describe(self) -> dict[str, float]:
        """Return the start-up time, and sentences and operations per token (6 per weight: Chowdhery 2022)."""
        weights = sum(m.weight.numel() for m in self._training.model.modules() if isinstance(m, nn.Linear))
        return {
            "first_call_seconds": self._first_call_seconds,
            "sentences_per_token": len(self._setup.sequences) / self._setup.num_tokens,
            "flops_per_token": 6.0 * weights,
        }

    def seconds_to_score(self, score: float) -> float | None:
        """Return the seconds of training until a dev score, or None once epochs or minutes are over."""
        training = cast(LearningSteps, self._training)
        clock = _Clock()
        reached = False

        def observe(tokens: int, _sentences: int) -> bool:
            nonlocal reached
            if tokens:
                clock.stop(tokens)
            due = clock.tokens // EVALUATE_EVERY > (clock.tokens - tokens) // EVALUATE_EVERY
            reached = due and training.score() >= score
            clock.start()
            return reached or clock.seconds > 60 * MINUTES

        clock.start()
        training.train(None, observe)
        return clock.seconds if reached else None

    def _take(self, steps: int) -> tuple[float, int]:
        """Take some steps; return their seconds and tokens."""
        clock = _Clock()

        def observe(tokens: int, _sentences: int) -> bool:
            if tokens:
                clock.stop(tokens)
            clock.start()
            return False

        clock.start()
        self._training.train(steps, observe)
        return clock.seconds, clock.tokens


class _Clock:
    """Seconds between start and stop, and the tokens that were trained on in them."""

    def __init__(self) -> None:
        self.seconds, self.tokens, self._started = 0.0, 0, 0.0

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self, tokens: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self._started
        self.tokens += tokens


def rows_of_tokens(setup: BenchmarkSetup, length: int) -> Tensor:
    """Return the training data as rows without padding, (rows, length), sentences behind one another."""
    ids = torch.tensor(list(chain.from_iterable(sequence.input_ids for sequence in setup.sequences)))
    return ids[: len(ids) // length * length].reshape(-1, length)


def shuffled_rows(rows: Tensor, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of rows without end, each epoch in another order."""
    while True:
        order = torch.randperm(len(rows), generator=generator)
        for indices in order.split(batch)[:-1]:
            yield rows[indices]
