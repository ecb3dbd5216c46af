"""Whole steps of several implementations, each in a process of its own, taking turns."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from fangyan_bench.harness.timing import TimingBudget, describe_error, interleave
from fangyan_bench.harness.worker import RemoteTrial, Worker, WorkerError

ROOT = Path(__file__).parents[3]
QUICK = TimingBudget(min_rounds=3, max_rounds=9, seconds=6.0)
FULL = TimingBudget(min_rounds=3, max_rounds=15, seconds=60.0)


@dataclass(frozen=True)
class StepResult:
    """What a implementation's steps took.

    Attributes:
        seconds_per_token: a number a round.
        first_call_seconds: building model and optimizer, and the first step.
        sentences_per_token, flops_per_token: of the data and the model.
        peak_memory: bytes of model, optimizer and steps.
    """

    seconds_per_token: list[float]
    first_call_seconds: float
    sentences_per_token: float
    flops_per_token: float
    peak_memory: int


def measure_steps(
    step: str,
    recipe: str,
    implementations: Sequence[str],
    timing_budget: TimingBudget,
    failed: dict[str, str],
) -> dict[str, StepResult]:
    """Rounds of steps by implementation, then what memory they took.

    Args:
        failed: a implementation that raises, or whose process dies, is entered here; the others go on.
    """
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(ROOT)) for name in implementations}
        trials: dict[str, RemoteTrial] = {}
        for name, worker in workers.items():
            try:
                worker.ready()
                trials[name] = RemoteTrial(worker, step=step, implementation=name, recipe=recipe)
            except WorkerError as error:
                failed[name] = describe_error(error)
        times = interleave(trials, "step", timing_budget, failed)
        results = {}
        for name, seconds in times.items():
            try:
                described = trials[name].ask("describe")
                results[name] = StepResult(seconds, peak_memory=trials[name].peak_memory(), **described)
            except WorkerError as error:
                failed[name] = describe_error(error)
        return results


def seconds_to_score(step: str, recipe: str, implementation: str, score: float) -> float | None:
    """Training time, evaluation left out, until a dev score; None if it was not reached."""
    with Worker(ROOT) as worker:
        worker.ready()
        trial = RemoteTrial(worker, step=step, implementation=implementation, recipe=recipe)
        seconds: float | None = trial.ask("seconds_until", score=score)
        return seconds
