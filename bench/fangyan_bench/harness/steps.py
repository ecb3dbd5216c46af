"""Whole training steps of several implementations, each in a process of its own, taking turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

from fangyan_bench.harness.machine import ROOT
from fangyan_bench.harness.timing import TimingBudget, describe_error, interleave
from fangyan_bench.harness.worker import RemoteTrial, Worker, WorkerError

QUICK = TimingBudget(min_rounds=3, max_rounds=9, seconds=6.0)
FULL = TimingBudget(min_rounds=3, max_rounds=15, seconds=60.0)
# Six of the recipe's conversations, of both kinds: each process reads its data before its first step.
QUICK_DATA = (
    "data.train=[FC-001_v2,FC-011_v,FC-103_v2,FC-R005_v2,FC-R011_v]",
    "data.dev=[FC-R013b_v]",
    "data.test=null",
)


@dataclass(frozen=True)
class StepSpec:
    """A whole training step that several implementations take.

    Attributes:
        task: the file in ``steps/`` that declares the implementations.
        recipe: path of the recipe.
        overrides: of the recipe, such as ``engine.precision=bf16``.
        size: which of the task's models, where it has several.
    """

    task: str
    recipe: str
    overrides: tuple[str, ...] = ()
    size: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` reads, in another process."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> StepSpec:
        """Return the step that was written by :meth:`to_json`."""
        return cls(**{**content, "overrides": tuple(content["overrides"])})


@dataclass(frozen=True)
class StepResult:
    """What an implementation's steps took.

    Attributes:
        seconds_per_token: one per round.
        first_call_seconds: building model and optimizer, and the first step.
        sentences_per_token: of the data.
        flops_per_token: of the model, forward and backward.
        peak_memory: bytes of model, optimizer and steps.
    """

    seconds_per_token: list[float]
    first_call_seconds: float
    sentences_per_token: float
    flops_per_token: float
    peak_memory: int


@dataclass
class StepMeasurements:
    """All implementations of a step.

    Attributes:
        results: by implementation.
        failed: by implementation, the error that it raised or that its process died of.
    """

    results: dict[str, StepResult] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def measure_steps(
    spec: StepSpec, implementations: Sequence[str], timing_budget: TimingBudget
) -> StepMeasurements:
    """Time rounds of steps, one implementation after the other in each, then read their peak memory."""
    measured = StepMeasurements()
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(ROOT)) for name in implementations}
        trials: dict[str, RemoteTrial] = {}
        for name, worker in workers.items():
            try:
                worker.ready()
                trials[name] = RemoteTrial(worker, step=spec.to_json(), implementation=name)
            except WorkerError as error:
                measured.failed[name] = describe_error(error)
        times = interleave(trials, "step", timing_budget, measured.failed)
        for name, seconds in times.items():
            try:
                described = trials[name].ask("describe")
                memory = trials[name].peak_memory()
                measured.results[name] = StepResult(seconds, peak_memory=memory, **described)
            except WorkerError as error:
                measured.failed[name] = describe_error(error)
    return measured


def seconds_to_score(spec: StepSpec, implementation: str, score: float) -> float | None:
    """Return the seconds of training, without evaluation, until a dev score; None if it is not reached."""
    with Worker(ROOT) as worker:
        worker.ready()
        trial = RemoteTrial(worker, step=spec.to_json(), implementation=implementation)
        seconds: float | None = trial.ask("seconds_to_score", score=score)
        return seconds
