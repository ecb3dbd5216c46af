"""Interleaved timing: every implementation takes its turn in every round, so that drift affects all alike."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Protocol

import torch
from torch import Tensor

from fangyan_bench.harness.check import upstream_gradient
from fangyan_bench.harness.machine import cache_bytes
from fangyan_bench.harness.memory import peak_memory, run_once
from fangyan_bench.harness.op import Implementation, Inputs, Op, Shape, leaves, make_inputs, size_in_bytes

MAX_SETS = 32
SAMPLE_SECONDS = 0.02  # a shorter sample is lost in the clock and the interpreter


@dataclass(frozen=True)
class TimingBudget:
    """How long a pass of all implementations is timed: rounds, within so many seconds."""

    min_rounds: int
    max_rounds: int
    seconds: float


QUICK = TimingBudget(min_rounds=5, max_rounds=15, seconds=1.0)


def full(device: str) -> TimingBudget:
    """Return the budget of a full run: a GPU is quieter, has more shapes, and is rented by the minute."""
    return TimingBudget(min_rounds=7, max_rounds=31, seconds=1.0 if device == "cuda" else 6.0)


def input_sets(op: Op, shape: Shape) -> list[Inputs]:
    """Make as many sets of inputs as exceed the cache, 32 at most, so that none is found there."""
    first = make_inputs(op, shape, 0)
    enough = 2 * cache_bytes(shape.device)
    sets = min(MAX_SETS, max(1, -(-enough // max(1, size_in_bytes(first)))))
    return [first, *(make_inputs(op, shape, seed) for seed in range(1, sets))]


class Trial:
    """An implementation made ready on the sets of inputs, which implementations share."""

    def __init__(self, op: Op, shape: Shape, implementation: Implementation, sets: Sequence[Inputs]):
        self._declared = op, shape, implementation
        self._clock = clock(shape.device)
        self._sets = len(sets)
        calls = [implementation.prepare(shape, inputs) for inputs in sets]
        differentiable = "backward" in op.passes
        gradients = [upstream_gradient(call()) if differentiable else None for call in calls[:1]] * len(calls)
        self._items = cycle(zip(calls, map(leaves, sets), gradients, strict=True))
        self._calls = 1

    def calibrate(self, pass_name: str) -> float:
        """Choose how many calls make a sample; return the seconds that a sample takes."""
        self.run(pass_name, 1)
        start = time.perf_counter()
        seconds = max(self.run(pass_name, 1), 1e-9)
        whole = time.perf_counter() - start
        # A backward's forward is not counted, but takes its time all the same.
        self._calls = max(1, min(round(SAMPLE_SECONDS / seconds), round(5 * SAMPLE_SECONDS / whole)))
        return whole * self._calls

    def sample(self, pass_name: str) -> float:
        """Return the seconds of one call."""
        return self.run(pass_name, self._calls)

    def peak_memory(self) -> int:
        """Return the bytes of one call, measured in a process of its own."""
        return peak_memory(*self._declared)

    def call_each(self, pass_name: str) -> Callable[[], None]:
        """Return a function that makes one call on every set of inputs, untimed: what a graph captures."""

        def calls() -> None:
            for _ in range(self._sets):
                _PASSES[pass_name](*next(self._items), _NoClock())

        return calls

    @property
    def sets(self) -> int:
        """How many sets of inputs there are."""
        return self._sets

    def run(self, pass_name: str, calls: int) -> float:
        """Return the seconds of one call, averaged over some; each takes the next set of inputs."""
        clock = self._clock()
        for _ in range(calls):
            _PASSES[pass_name](*next(self._items), clock)
        return clock.seconds() / calls


class NotCompiled(Exception):
    """What should have been compiled ran eagerly, and so would its times be."""


def first_call_seconds(op: Op, shape: Shape, implementation: Implementation, inputs: Inputs) -> float:
    """Time preparation and first call, forward and backward, with loading and compilation.

    Raises:
        NotCompiled: if torch.compile compiled nothing for an implementation that it should compile.
    """
    graphs = _compiled_graphs() if implementation.compiled else 0
    start = time.perf_counter()
    run_once(op, shape, implementation, inputs)
    if shape.device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    if implementation.compiled and _compiled_graphs() == graphs:
        raise NotCompiled(f"{implementation.name}: its first call at {shape} compiled nothing")
    return seconds


def reset_compiled() -> None:
    """Forget compiled variants before another shape: torch.compile has a limit of them per function."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def _compiled_graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


class Timed(Protocol):
    """What can take its turn: a :class:`Trial` here or in a worker, or steps of a training."""

    def calibrate(self, pass_name: str) -> float:
        """Choose how many calls make a sample; return the seconds that a sample takes."""

    def sample(self, pass_name: str) -> float:
        """Return the seconds of one call."""


def interleave(
    trials: Mapping[str, Timed],
    pass_name: str,
    timing_budget: TimingBudget,
    failed: dict[str, str] | None = None,
) -> dict[str, list[float]]:
    """Time all trials in turns; the order changes every round.

    Args:
        trials: by name.
        pass_name: what to time.
        timing_budget: rounds and seconds.
        failed: if given, a trial that raises is entered here and drops out, and the others continue.

    Returns:
        By trial, the seconds of one call, one per round.
    """

    def turn(name: str, take: Callable[[str], float]) -> float | None:
        try:
            return take(pass_name)
        except Exception as error:
            if failed is None:
                raise
            failed[name] = describe_error(error)
            return None

    lengths = {name: turn(name, trial.calibrate) for name, trial in trials.items()}
    round_seconds = sum(seconds for seconds in lengths.values() if seconds is not None)
    times: dict[str, list[float]] = {name: [] for name, seconds in lengths.items() if seconds is not None}
    if not times:
        return {}
    affordable = int(timing_budget.seconds / round_seconds)
    rounds = max(timing_budget.min_rounds, min(timing_budget.max_rounds, affordable))
    deadline = time.perf_counter() + timing_budget.seconds
    shuffle = random.Random(0).shuffle
    for done in range(rounds):
        if done >= timing_budget.min_rounds and time.perf_counter() > deadline:
            break
        order = list(times)
        shuffle(order)
        for name in order:
            seconds = turn(name, trials[name].sample)
            if seconds is None:
                del times[name]
            else:
                times[name].append(seconds)
    return times


def describe_error(error: Exception) -> str:
    """Return an error as one line of at most 300 characters: compilers' own fill pages."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


class Clock(Protocol):
    """Adds up the seconds of the calls that it is given."""

    def time(self, call: Callable[[], Any]) -> None:
        """Make a call, and add its seconds."""

    def seconds(self) -> float:
        """Return the seconds of all calls."""


def clock(device: str) -> Callable[[], Clock]:
    """Return the class of clocks for a device."""
    return _CudaClock if device == "cuda" else _CpuClock


class _NoClock:
    def time(self, call: Callable[[], Any]) -> None:
        call()

    def seconds(self) -> float:
        return 0.0


class _CpuClock:
    def __init__(self) -> None:
        self._total = 0.0

    def time(self, call: Callable[[], Any]) -> None:
        start = time.perf_counter()
        value = call()
        self._total += time.perf_counter() - start
        del value

    def seconds(self) -> float:
        return self._total


class _CudaClock:
    """Events on the stream: the host's time between them counts only where the GPU waits for it."""

    def __init__(self) -> None:
        self._events: list[tuple[Any, Any]] = []

    def time(self, call: Callable[[], Any]) -> None:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        self._events.append((start, end))

    def seconds(self) -> float:
        torch.cuda.synchronize()
        return float(sum(start.elapsed_time(end) for start, end in self._events)) / 1e3


def _call(call: Callable[[], Any], _params: list[Tensor], _gradient: Tensor | None, clock: Any) -> None:
    # A forward too: its graph is recorded, as in training.
    clock.time(call)


def _backward(call: Callable[[], Any], params: list[Tensor], gradient: Tensor | None, clock: Any) -> None:
    value: Tensor = call()
    _forget_gradients(params)
    clock.time(lambda: value.backward(gradient))


def _both(call: Callable[[], Any], params: list[Tensor], gradient: Tensor | None, clock: Any) -> None:
    _forget_gradients(params)
    clock.time(lambda: call().backward(gradient))


def _forget_gradients(params: list[Tensor]) -> None:
    for leaf in params:
        leaf.grad = None


_PASSES = {"call": _call, "forward": _call, "backward": _backward, "forward+backward": _both}
