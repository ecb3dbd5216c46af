"""The host's time for calls of GPU ops, with no GPU: beside eager's calls on the same small inputs, in turns.

A step of a small model takes a GPU a few microseconds per op: then the host decides. Ratios are asserted,
with a third to spare; the microseconds are this machine's. Eager's calls are all C++: ours cost 3 times as
much, and a GPU has to save more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from fangyan_kernels import linear_cross_entropy, lora_linear
from fangyan_kernels.testing.launches import Launches, record_launches
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fangyan_bench.harness.host import host_seconds
from fangyan_bench.harness.replay import CLOCK
from fangyan_bench.harness.stats import ratio, summarize
from fangyan_bench.harness.suite import Suite

pytestmark = pytest.mark.benchmark(timer=CLOCK.read, warmup=False, disable_gc=False, cprofile=False)

OURS, PLAIN = "fangyan", "plain PyTorch"
TOKENS, HIDDEN, RANK = 16, 16, 16  # larger ones of bfloat16 take a CPU 30 us


@dataclass(frozen=True)
class Case:
    """A forward and backward of an op in bfloat16.

    Attributes:
        ours: our call, of matrices by name.
        plain: what it replaces.
        launches: how many kernels ours launches at most.
        at_most: largest ratio to the plain call's host time.
    """

    ours: Callable[[dict[str, Tensor]], Tensor]
    plain: Callable[[dict[str, Tensor]], Tensor]
    launches: int
    at_most: float


def _adapted(m: dict[str, Tensor]) -> Tensor:
    return F.linear(m["x"], m["frozen"]) + 2.0 * F.linear(F.linear(m["x"], m["a"]), m["b"])


CASES = {
    "tags": Case(
        lambda m: linear_cross_entropy(m["x"], m["head"], m["target"], impl="triton"),  # type: ignore[arg-type]
        lambda m: F.cross_entropy(F.linear(m["x"], m["head"]), m["target"]),
        launches=4,
        at_most=3.3,
    ),
    "tags, divisor given": Case(
        lambda m: linear_cross_entropy(m["x"], m["head"], m["target"], divisor=m["divisor"], impl="triton"),
        lambda m: F.cross_entropy(F.linear(m["x"], m["head"]), m["target"], reduction="sum") / m["divisor"],
        launches=3,
        at_most=3.0,
    ),
    "vocabulary": Case(
        lambda m: linear_cross_entropy(m["x"], m["vocabulary"], m["target"], impl="triton"),
        lambda m: F.cross_entropy(F.linear(m["x"], m["vocabulary"]), m["target"]),
        launches=6,
        at_most=4.2,
    ),
    "LoRA": Case(
        lambda m: lora_linear(m["x"], m["frozen"], m["a"], m["b"], scaling=2.0, impl="triton"),
        _adapted,
        launches=6,
        at_most=4.3,
    ),
    "LoRA, dropout": Case(
        lambda m: lora_linear(m["x"], m["frozen"], m["a"], m["b"], scaling=2.0, dropout=0.1, impl="triton"),
        _adapted,
        launches=6,
        at_most=4.6,
    ),
}


@pytest.fixture(scope="module")
def launches() -> Iterator[Launches]:
    """Record launches instead of making them, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a launch is one thread's work; so are products of this size
    try:
        with record_launches() as launches:
            yield launches
    finally:
        torch.set_num_threads(threads)


def matrices() -> dict[str, Tensor]:
    """Return the operands of all cases."""
    generator = torch.Generator().manual_seed(0)
    sizes = {
        "x": (TOKENS, HIDDEN),
        "frozen": (HIDDEN, HIDDEN),
        "head": (7, HIDDEN),
        "vocabulary": (1000, HIDDEN),
        "a": (RANK, HIDDEN),
        "b": (HIDDEN, RANK),
    }
    found = {
        name: torch.randn(*size, generator=generator).bfloat16().requires_grad_(name != "frozen")
        for name, size in sizes.items()
    }
    found["target"] = torch.randint(7, (TOKENS,), generator=generator)
    found["divisor"] = torch.tensor(float(TOKENS))
    return found


@dataclass(frozen=True)
class HostTimes:
    """What a case took, one entry per round.

    Attributes:
        seconds: by implementation.
        launched: the kernels that ours launches.
    """

    seconds: dict[str, list[float]]
    launched: list[str]


@pytest.fixture(scope="module")
def host_times(launches: Launches) -> Callable[[str], HostTimes]:
    """Return the function that measures a case by name, once."""
    return cache(lambda name: _measure(CASES[name], launches))


def _measure(case: Case, launches: Launches) -> HostTimes:
    values = matrices()
    calls = {OURS: _forward_and_backward(case.ours, values), PLAIN: _forward_and_backward(case.plain, values)}
    calls[OURS]()
    launches.clear()
    calls[OURS]()
    launched = list(launches.launched)
    assert len(launched) <= case.launches, launched
    assert not launches.variants
    rounds = [[host_seconds(call, rounds=1) for call in calls.values()] for _ in range(15)]
    seconds = dict(zip(calls, map(list, zip(*rounds, strict=True)), strict=True))
    return HostTimes(seconds, launched)


@pytest.mark.parametrize("implementation", [OURS, PLAIN])
@pytest.mark.parametrize("name", CASES)
def test_host(
    name: str,
    implementation: str,
    host_times: Callable[[str], HostTimes],
    suite: Suite,
    benchmark: BenchmarkFixture,
) -> None:
    """Time the host's part of a forward and backward, and count its launches."""
    measured = host_times(name)
    times = measured.seconds[implementation]
    if implementation == PLAIN:
        suite.record(benchmark, "host", times, op=name, implementation=PLAIN, role="baseline")
        return
    found = ratio(times, measured.seconds[PLAIN])
    launched = measured.launched
    suite.messages.append(
        f"host of {name}: {1e6 * summarize(times).median:.0f} us, {found.median:.2f}x of plain PyTorch's, "
        f"{len(launched)} launches: {', '.join(launched)}"
    )
    suite.record(
        benchmark, "host", times, op=name, implementation=OURS, role="ours", launches=launched, ratio=found
    )
    assert found.median <= CASES[name].at_most, f"{name}: {found.median:.2f}x of plain PyTorch's host time"


def _forward_and_backward(
    forward: Callable[[dict[str, Tensor]], Tensor], values: dict[str, Tensor]
) -> Callable[[], None]:
    def call() -> None:
        for value in values.values():
            value.grad = None
        output = forward(values)
        output.backward(torch.ones_like(output))

    return call
