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
from fangyan_bench.harness.machine import Ceilings, gpu_lost, measure_ceilings
from fangyan_bench.harness.memory import peak_memory
from fangyan_bench.harness.op import Contender, Inputs, Op, Shape
from fangyan_bench.harness.registry import contenders
from fangyan_bench.harness.statistics import Ratio, ratio, slope
from fangyan_bench.harness.stepping import StepResult, measure_steps
from fangyan_bench.harness.timing import complaint


@dataclass
class Measured:
    """All contenders of an op at one shape.

    Attributes:
        times: by pass, by contender, seconds of a call, a number a round.
        first_call_seconds, peak_memory: by contender; memory in bytes.
        errors: by contender, the largest error of a value or gradient, relative to the truth's norm.
        missing: why a contender could not run here.
        failed: what a contender raised or computes otherwise; it was not timed.
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
        self._ops: dict[tuple[str, str], Measured] = {}
        self._steps: dict[str, tuple[dict[str, StepResult], dict[str, str]]] = {}

    @cached_property
    def ceilings(self) -> Ceilings:
        return measure_ceilings()

    def op(self, op: Op, shape: Shape) -> Measured:
        """Times and memory of every contender."""
        key = op.name, str(shape)
        if key not in self._ops:
            effort = timing.QUICK if self.quick else timing.full(shape.device)
            self._ops[key] = _measure(op, shape, contenders(op, self.quick), effort, memory=True)
        return self._ops[key]

    def ratio(self, op: Op, shape: Shape, which: str, contender: str) -> Ratio | None:
        """The baseline's time over the contender's; None where the baseline has none, for want of memory."""
        times = self.op(op, shape).times[which]
        if op.baseline.name not in times:
            return None
        return ratio(times[op.baseline.name], times[contender])

    def ratio_again(self, op: Op, shape: Shape, which: str, contender: str) -> Ratio:
        """The same in rounds of these two alone, now."""
        chosen = [op.baseline, op.contender(contender)]
        effort = timing.QUICK if self.quick else timing.full(shape.device)
        measured = _measure(op, shape, chosen, effort, memory=False, passes=(which,))
        if measured.failed:
            raise RuntimeError(f"{shape}: {measured.failed}")
        return ratio(measured.times[which][op.baseline.name], measured.times[which][contender])

    def steps(
        self, step: str, model: str, recipe: str, names: list[str]
    ) -> tuple[dict[str, StepResult], dict[str, str]]:
        """Whole steps of the contenders on a recipe, and what those that failed say."""
        if model not in self._steps:
            effort = stepping.QUICK if self.quick else stepping.FULL
            failed: dict[str, str] = {}
            self._steps[model] = measure_steps(step, recipe, names, effort, failed), failed
        return self._steps[model]

    def floor(self, op: Op, shape: Shape, which: str) -> float:
        """Seconds that the pass would take at this machine's ceilings."""
        work = op.work(shape, which)
        flops = self.ceilings.flops[shape.dtype]
        return max(work.bytes / self.ceilings.bytes_per_second, work.flops / flops)


def scaling(op: Op, base: Shape, letter: str) -> dict[str, list[tuple[int, float]]]:
    """By contender, (size, median seconds of a call) as one dimension of the base shape grows."""
    which = op.passes[-1]
    chosen = [c for c in op.contenders if c.role == "ours" or c is op.baseline]
    points: dict[str, list[tuple[int, float]]] = {}
    for size in op.scaling[letter]:
        shape = replace(base, sizes={**base.sizes, letter: size})
        measured = _measure(op, shape, chosen, timing.QUICK, memory=False, passes=(which,))
        if measured.failed:
            raise RuntimeError(f"{shape}: {measured.failed}")
        for name, times in measured.times[which].items():
            points.setdefault(name, []).append((size, statistics.median(times)))
    return points


def slopes(points: dict[str, list[tuple[int, float]]]) -> dict[str, float]:
    """Exponents of the growth, by contender."""
    return {name: slope(*zip(*line, strict=True)) for name, line in points.items()}


def _measure(
    op: Op,
    shape: Shape,
    chosen: list[Contender],
    effort: timing.Effort,
    memory: bool,
    passes: tuple[str, ...] | None = None,
) -> Measured:
    measured = Measured()
    sets = timing.input_sets(op, shape)
    trials = prepare(op, shape, chosen, sets, measured)
    for which in passes or op.passes:
        running = {name: trial for name, trial in trials.items() if name not in measured.failed}
        measured.times[which] = timing.interleave(running, which, effort, measured.failed)
    for name in trials if memory else ():
        try:
            measured.peak_memory[name] = peak_memory(op, shape, op.contender(name))
        except Exception as error:
            measured.failed[name] = complaint(error)
    return measured


def prepare(
    op: Op,
    shape: Shape,
    chosen: Sequence[Contender],
    sets: list[Inputs],
    measured: Measured,
    starting: Callable[[str], None] = lambda name: None,
) -> dict[str, timing.Trial]:
    """Those that run here and compute the right values; of the others ``measured`` says why not.

    Args:
        starting: told the name of every contender before it runs.
    """
    timing.forget_compiled()
    against = expected(op, shape)
    trials: dict[str, timing.Trial] = {}
    for contender in chosen:
        if reason := contender.missing(shape):
            measured.missing[contender.name] = reason
            continue
        starting(contender.name)
        try:
            measured.first_call_seconds[contender.name] = timing.first_call_seconds(
                op, shape, contender, sets[0]
            )
            if contender.computes:
                measured.errors[contender.name] = check(contender, against)
            trials[contender.name] = timing.Trial(op, shape, contender, sets)
        except Exception as error:
            if gpu_lost():
                raise
            short = isinstance(error, torch.OutOfMemoryError)
            found = measured.missing if short and contender.role != "ours" else measured.failed
            found[contender.name] = "it needs more memory than there is" if short else complaint(error)
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
