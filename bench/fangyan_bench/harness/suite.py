"""What a run has measured so far: each op and shape once, for all the tests that read from it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from fangyan_bench.harness import steps, timing
from fangyan_bench.harness.check import check, expected
from fangyan_bench.harness.machine import PeakRates, gpu_lost, measure_peak_rates
from fangyan_bench.harness.memory import peak_memory
from fangyan_bench.harness.op import Implementation, Inputs, Op, Shape
from fangyan_bench.harness.replay import replay
from fangyan_bench.harness.results import Row, make_row, title
from fangyan_bench.harness.stats import Ratio, ratio, slope
from fangyan_bench.harness.steps import StepMeasurements, StepSpec, measure_steps
from fangyan_bench.harness.timing import describe_error

if TYPE_CHECKING:  # bench/gpu.py imports the harness without pytest-benchmark
    from pytest_benchmark.fixture import BenchmarkFixture


@dataclass
class OpMeasurements:
    """All implementations of an op at one shape.

    Attributes:
        times: by pass and implementation, the seconds of a call, one per round.
        first_call_seconds: by implementation.
        peak_memory: by implementation, in bytes.
        errors: by implementation, the largest error of a value or gradient, relative to the reference's norm.
        missing: by implementation, why it cannot run here.
        failed: by implementation, what it raised or computed wrongly; it was not timed.
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
        messages: what the run prints at its end.
        rows: what ``--results`` stores.
    """

    def __init__(self, quick: bool):
        self.quick = quick
        self.messages: list[str] = []
        self.rows: list[Row] = []
        self._ops: dict[tuple[str, str], OpMeasurements] = {}
        self._steps: dict[tuple[StepSpec, tuple[str, ...]], StepMeasurements] = {}

    @cached_property
    def peak_rates(self) -> PeakRates:
        """What this machine reaches at its best."""
        return measure_peak_rates()

    def record(self, benchmark: BenchmarkFixture, kind: str, rounds: Sequence[float], **fields: Any) -> None:
        """Report a benchmark: to pytest-benchmark, and as a row of ``--results``.

        Args:
            benchmark: the fixture; it takes the rounds, and the fields as its ``extra_info``.
            kind: as :func:`make_row` takes it, like ``rounds`` and ``fields``.
            rounds: seconds, one per round.
            fields: what else is known.
        """
        row = make_row(kind, rounds, **fields)
        benchmark.group = title(row)
        benchmark.extra_info.update({name: value for name, value in row.items() if name != "seconds"})
        replay(benchmark, rounds)
        self.rows.append(row)

    def op(self, op: Op, shape: Shape) -> OpMeasurements:
        """Return times and memory of every implementation."""
        key = op.name, str(shape)
        if key not in self._ops:
            selected = op.implementations_to_time(self.quick)
            self._ops[key] = _measure(op, shape, selected, self._timing_budget(shape))
            _add_peak_memory(op, shape, self._ops[key])
        return self._ops[key]

    def ratio(self, op: Op, shape: Shape, pass_name: str, implementation: str) -> Ratio | None:
        """Return the baseline's time over the implementation's; None if the baseline ran out of memory."""
        times = self.op(op, shape).times[pass_name]
        if op.baseline.name not in times:
            return None
        return ratio(times[op.baseline.name], times[implementation])

    def ratio_again(self, op: Op, shape: Shape, pass_name: str, implementation: str) -> Ratio:
        """Measure the same ratio in new rounds of these two alone."""
        selected = [op.baseline, op.implementation(implementation)]
        measured = _measure(op, shape, selected, self._timing_budget(shape), passes=(pass_name,))
        if measured.failed:
            raise RuntimeError(f"{shape}: {measured.failed}")
        return ratio(measured.times[pass_name][op.baseline.name], measured.times[pass_name][implementation])

    def steps(self, spec: StepSpec, implementations: Sequence[str]) -> StepMeasurements:
        """Return whole steps of the implementations."""
        key = spec, tuple(implementations)
        if key not in self._steps:
            timing_budget = steps.QUICK if self.quick else steps.FULL
            self._steps[key] = measure_steps(spec, implementations, timing_budget)
        return self._steps[key]

    def floor(self, op: Op, shape: Shape, pass_name: str) -> float:
        """Return the seconds that the pass would take at this machine's peak rates."""
        cost = op.cost(shape, pass_name)
        flops = self.peak_rates.flops[shape.dtype]
        return max(cost.bytes / self.peak_rates.bytes_per_second, cost.flops / flops)

    def _timing_budget(self, shape: Shape) -> timing.TimingBudget:
        return timing.QUICK if self.quick else timing.full(shape.device)


def scaling(op: Op, base: Shape, dim: str) -> dict[str, list[tuple[int, float]]]:
    """Time the op as one dimension of the base shape grows.

    Returns:
        By implementation, pairs of size and median seconds of a call.
    """
    pass_name = op.passes[-1]
    selected = [each for each in op.implementations if each.role == "ours" or each is op.baseline]
    points: dict[str, list[tuple[int, float]]] = {}
    for size in op.scaling[dim]:
        shape = replace(base, sizes={**base.sizes, dim: size})
        measured = _measure(op, shape, selected, timing.QUICK, passes=(pass_name,))
        if measured.failed:
            raise RuntimeError(f"{shape}: {measured.failed}")
        for name, times in measured.times[pass_name].items():
            points.setdefault(name, []).append((size, statistics.median(times)))
    return points


def slopes(points: dict[str, list[tuple[int, float]]]) -> dict[str, float]:
    """Return, by implementation, the exponent of the cost's growth."""
    return {name: slope(*zip(*line, strict=True)) for name, line in points.items()}


def _measure(
    op: Op,
    shape: Shape,
    selected: Sequence[Implementation],
    timing_budget: timing.TimingBudget,
    passes: tuple[str, ...] | None = None,
) -> OpMeasurements:
    measured = OpMeasurements()
    trials = prepare(op, shape, selected, timing.input_sets(op, shape), measured)
    for pass_name in passes or op.passes:
        running = {name: trial for name, trial in trials.items() if name not in measured.failed}
        measured.times[pass_name] = timing.interleave(running, pass_name, timing_budget, measured.failed)
    return measured


def _add_peak_memory(op: Op, shape: Shape, measured: OpMeasurements) -> None:
    for name in measured.first_call_seconds:
        if name in measured.failed or name in measured.missing:
            continue
        try:
            measured.peak_memory[name] = peak_memory(op, shape, op.implementation(name))
        except Exception as error:
            measured.failed[name] = describe_error(error)


def prepare(
    op: Op,
    shape: Shape,
    selected: Sequence[Implementation],
    sets: list[Inputs],
    measured: OpMeasurements,
    starting: Callable[[str], None] = lambda _name: None,
) -> dict[str, timing.Trial]:
    """Make ready the implementations that run here and compute the right values.

    Args:
        op: whose implementations they are.
        shape: to run at.
        selected: the implementations.
        sets: inputs, which all of them share.
        measured: receives first calls and errors; of the others, why they are left out.
        starting: called with every implementation's name before it runs.
    """
    timing.reset_compiled()
    against = expected(op, shape)
    trials: dict[str, timing.Trial] = {}
    for implementation in selected:
        name = implementation.name
        if reason := implementation.missing(shape):
            measured.missing[name] = reason
            continue
        starting(name)
        try:
            seconds = timing.first_call_seconds(op, shape, implementation, sets[0])
            measured.first_call_seconds[name] = seconds
            if implementation.computes:
                measured.errors[name] = check(implementation, against)
            trials[name] = timing.Trial(op, shape, implementation, sets)
        except Exception as error:
            if gpu_lost():
                raise
            too_large = isinstance(error, torch.OutOfMemoryError) and implementation.role != "ours"
            if too_large:
                measured.missing[name] = "it needs more memory than there is"
            else:
                measured.failed[name] = describe_error(error)
        if shape.device == "cuda":
            torch.cuda.empty_cache()
    return trials
