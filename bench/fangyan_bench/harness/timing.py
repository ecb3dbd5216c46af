"""Interleaved timing: every implementation takes its turn in every round, so that drift hits all alike."""

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
    """How long to look at a pass of all implementations: rounds, within a time."""

    min_rounds: int
    max_rounds: int
    seconds: float


QUICK = TimingBudget(min_rounds=5, max_rounds=15, seconds=1.0)


def full(device: str) -> TimingBudget:
    """A GPU is quieter, and has more shapes to go through in the minutes that it is there."""
    return TimingBudget(min_rounds=7, max_rounds=31, seconds=1.0 if device == "cuda" else 6.0)


def input_sets(op: Op, shape: Shape) -> list[Inputs]:
    """As many sets of inputs as it takes to exceed the cache, 32 at most, so that none is found there."""
    first = make_inputs(op, shape, 0)
    enough = 2 * cache_bytes(shape.device)
    sets = min(MAX_SETS, max(1, -(-enough // max(1, size_in_bytes(first)))))
    return [first, *(make_inputs(op, shape, seed) for seed in range(1, sets))]


class Trial:
    """A implementation made ready on the sets of inputs, which implementations share."""

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
        """Chooses how many calls make a sample; gives the seconds that a sample takes."""
        self.run(pass_name, 1)
        start = time.perf_counter()
        seconds = max(self.run(pass_name, 1), 1e-9)
        whole = time.perf_counter() - start
        # A backward's forward is not counted, but takes its time all the same.
        self._calls = max(1, min(round(SAMPLE_SECONDS / seconds), round(5 * SAMPLE_SECONDS / whole)))
        return whole * self._calls

    def sample(self, pass_name: str) -> float:
        """Seconds of one call."""
        return self.run(pass_name, self._calls)

    def peak_memory(self) -> int:
        """Bytes of one call, measured apart."""
        return peak_memory(*self._declared)

    def call_each(self, pass_name: str) -> Callable[[], None]:
        """A function that makes one call on every set of inputs, untimed: what a graph captures."""

        def calls() -> None:
            for _ in range(self._sets):
                _PASSES[pass_name](*next(self._items), _NoClock())

        return calls

    @property
    def sets(self) -> int:
        return self._sets

    def run(self, pass_name: str, calls: int) -> float:
        """Seconds of one call, over some; each takes the next set of inputs."""
        clock = self._clock()
        for _ in range(calls):
            _PASSES[pass_name](*next(self._items), clock)
        return clock.seconds() / calls


class NotCompiled(Exception):
    """What should have been compiled ran as it is; its times would be eager's."""


def first_call_seconds(op: Op, shape: Shape, implementation: Implementation, inputs: Inputs) -> float:
    """Preparing and calling for the first time, forward and backward: with loading and compilation.

    Raises:
        NotCompiled: if a compiled implementation's graph is none of the compiler's.
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
    """Before another shape: torch.compile has a limit of variants per function."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def _compiled_graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


class Timed(Protocol):
    """What can take its turn: a :class:`Trial` here or in a worker, or steps of a training."""

    def calibrate(self, pass_name: str) -> float: ...

    def sample(self, pass_name: str) -> float: ...


def interleave(
    trials: Mapping[str, Timed],
    pass_name: str,
    timing_budget: TimingBudget,
    failed: dict[str, str] | None = None,
) -> dict[str, list[float]]:
    """Seconds a call, a list a implementation, one number a round; the order changes every round.

    Args:
        failed: if given, a implementation that raises is entered here and drops out, and the others go on.
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
    wanted = max(
        timing_budget.min_rounds, min(timing_budget.max_rounds, int(timing_budget.seconds / round_seconds))
    )
    deadline = time.perf_counter() + timing_budget.seconds
    shuffle = random.Random(0).shuffle
    for done in range(wanted):
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
    """An error in one line of at most 300 characters: compilers' own go on for pages."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


class Clock(Protocol):
    """Adds up the seconds of the calls that it is given."""

    def time(self, call: Callable[[], Any]) -> None: ...

    def seconds(self) -> float: ...


def clock(device: str) -> Callable[[], Clock]:
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


def _call(call: Callable[[], Any], parts: list[Tensor], gradient: Tensor | None, clock: Any) -> None:
    # A forward too: its graph is recorded, as in training.
    clock.time(call)


def _backward(call: Callable[[], Any], parts: list[Tensor], gradient: Tensor | None, clock: Any) -> None:
    value: Tensor = call()
    _forget_gradients(parts)
    clock.time(lambda: value.backward(gradient))


def _both(call: Callable[[], Any], parts: list[Tensor], gradient: Tensor | None, clock: Any) -> None:
    _forget_gradients(parts)
    clock.time(lambda: call().backward(gradient))


def _forget_gradients(parts: list[Tensor]) -> None:
    for leaf in parts:
        leaf.grad = None


_PASSES = {"call": _call, "forward": _call, "backward": _backward, "forward+backward": _both}
