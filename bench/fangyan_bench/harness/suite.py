"""What a run has measured so far: each op and shape once, for all the tests that read from it."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from fangyan_bench.harness import stepping, timing
from fangyan_bench.harness.check import check, expected
from fangyan_bench.harness.machine import PeakRates, gpu_lost, measure_peak_rates
from fangyan_bench.harness.memory import peak_memory
from fangyan_bench.harness.op import Implementation, Inputs, Op, Shape
from fangyan_bench.harness.registry import implementations
from fangyan_bench.harness.statistics import Ratio, ratio, slope
from fangyan_bench.harness.stepping import StepResult, measure_steps
from fangyan_bench.harness.timing import describe_error


@dataclass
class OpMeasurements:
    """All implementations of an op at one shape.

    Attributes:
        times: by pass, by implementation, seconds of a call, a number a round.
        first_call_seconds, peak_memory: by implementation; memory in bytes.
        errors: by implementation, the largest error of a value or gradient, relative to the truth's norm.
        missing: why a implementation could not run here.
        failed: what a implementation raised or computes otherwise; it was not timed.
    """

    times: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    first_call_seconds: dict[str, float] = field(default_factory=dict)
    peak_memory: dict[str, int] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class Suite:
    """The measurements of one run of the suite.

    Attributes:
        lines: what the run prints at its end.
    """

    def __init__(self, quick: bool):
        self.quick = quick
        self.lines: list[str] = []
        self._ops: dict[tuple[str, str], OpMeasurements] = {}
        self._steps: dict[str, tuple[dict[str, StepResult], dict[str, str]]] = {}

    @cached_property
    def peak_rates(self) -> PeakRates:
        return measure_peak_rates()

    def op(self, op: Op, shape: Shape) -> OpMeasurements:
        """Times and memory of every implementation."""
        key = op.name, str(shape)
        if key not in self._ops:
            timing_budget = timing.QUICK if self.quick else timing.full(shape.device)
            self._ops[key] = _measure(op, shape, implementations(op, self.quick), timing_budget, memory=True)
        return self._ops[key]

    def ratio(self, op: Op, shape: Shape, pass_name: str, implementation: str) -> Ratio | None:
        """The baseline's time over the implementation's; None where the baseline has none, for want of memory."""
        times = self.op(op, shape).times[pass_name]
        if op.baseline.name not in times:
            return None
        return ratio(times[op.baseline.name], times[implementation])

    def ratio_again(self, op: Op, shape: Shape, pass_name: str, implementation: str) -> Ratio:
        """The same in rounds of these two alone, now."""
        chosen = [op.baseline, op.implementation(implementation)]
        timing_budget = timing.QUICK if self.quick else timing.full(shape.device)
        measured = _measure(op, shape, chosen, timing_budget, memory=False, passes=(pass_name,))
        if measured.failed:
            raise RuntimeError(f"{shape}: {measured.failed}")
        return ratio(measured.times[pass_name][op.baseline.name], measured.times[pass_name][implementation])

    def steps(
        self, step: str, model: str, recipe: str, names: list[str]
    ) -> tuple[dict[str, StepResult], dict[str, str]]:
        """Whole steps of the implementations on a recipe, and what those that failed say."""
        if model not in self._steps:
            timing_budget = stepping.QUICK if self.quick else stepping.FULL
            failed: dict[str, str] = {}
            self._steps[model] = measure_steps(step, recipe, names, timing_budget, failed), failed
        return self._steps[model]

    def floor(self, op: Op, shape: Shape, pass_name: str) -> float:
        """Seconds that the pass would take at this machine's ceilings."""
        cost = op.cost(shape, pass_name)
        flops = self.peak_rates.flops[shape.dtype]
        return max(cost.bytes / self.peak_rates.bytes_per_second, cost.flops / flops)


def scaling(op: Op, base: Shape, dim: str) -> dict[str, list[tuple[int, float]]]:
    """By implementation, (size, median seconds of a call) as one dimension of the base shape grows."""
    pass_name = op.passes[-1]
    chosen = [c for c in op.implementations if c.role == "ours" or c is op.baseline]
    points: dict[str, list[tuple[int, float]]] = {}
    for size in op.scaling[dim]:
        shape = replace(base, sizes={**base.sizes, dim: size})
        measured = _measure(op, shape, chosen, timing.QUICK, memory=False, passes=(pass_name,))
        if measured.failed:
            raise RuntimeError(f"{shape}: {measured.failed}")
        for name, times in measured.times[pass_name].items():
            points.setdefault(name, []).append((size, statistics.median(times)))
    return points


def slopes(points: dict[str, list[tuple[int, float]]]) -> dict[str, float]:
    """Exponents of the growth, by implementation."""
    return {name: slope(*zip(*line, strict=True)) for name, line in points.items()}


def _measure(
    op: Op,
    shape: Shape,
    chosen: list[Implementation],
    timing_budget: timing.TimingBudget,
    memory: bool,
    passes: tuple[str, ...] | None = None,
) -> OpMeasurements:
    measured = OpMeasurements()
    sets = timing.input_sets(op, shape)
    trials = prepare(op, shape, chosen, sets, measured)
    for pass_name in passes or op.passes:
        running = {name: trial for name, trial in trials.items() if name not in measured.failed}
        measured.times[pass_name] = timing.interleave(running, pass_name, timing_budget, measured.failed)
    for name in trials if memory else ():
        try:
            measured.peak_memory[name] = peak_memory(op, shape, op.implementation(name))
        except Exception as error:
            measured.failed[name] = describe_error(error)
    return measured


def prepare(
    op: Op,
    shape: Shape,
    chosen: Sequence[Implementation],
    sets: list[Inputs],
    measured: OpMeasurements,
    starting: Callable[[str], None] = lambda name: None,
) -> dict[str, timing.Trial]:
    """Those that run here and compute the right values; of the others ``measured`` says why not.

    Args:
        starting: told the name of every implementation before it runs.
    """
    timing.reset_compiled()
    against = expected(op, shape)
    trials: dict[str, timing.Trial] = {}
    for implementation in chosen:
        if reason := implementation.missing(shape):
            measured.missing[implementation.name] = reason
            continue
        starting(implementation.name)
        try:
            measured.first_call_seconds[implementation.name] = timing.first_call_seconds(
                op, shape, implementation, sets[0]
            )
            if implementation.computes:
                measured.errors[implementation.name] = check(implementation, against)
            trials[implementation.name] = timing.Trial(op, shape, implementation, sets)
        except Exception as error:
            if gpu_lost():
                raise
            short = isinstance(error, torch.OutOfMemoryError)
            found = measured.missing if short and implementation.role != "ours" else measured.failed
            found[implementation.name] = (
                "it needs more memory than there is" if short else describe_error(error)
            )
        if shape.device == "cuda":
            torch.cuda.empty_cache()
    return trials


_readings: deque[float] = deque()


def recorded_time() -> float:
    """The clock of pytest-benchmark in this suite: it reads what was measured, not the time."""
    return _readings.popleft()


def replay(benchmark: Any, seconds: list[float]) -> None:
    """Hands measured rounds to pytest-benchmark, which computes, shows and stores them as ever.

    Its own loop times one function after another; ours has taken turns. The test needs
    ``@pytest.mark.benchmark(timer=recorded_time)``.
    """
    _readings.clear()
    for duration in seconds:
        _readings.extend((0.0, duration))
    benchmark.pedantic(lambda: None, rounds=len(seconds))
