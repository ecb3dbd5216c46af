"""What GPU ops cost their host, with no GPU: beside eager's calls on the same few numbers, in turns.

A step of a small model is a few microseconds of GPU per op: then the host decides. Ratios are claimed, with a
third to spare; the microseconds are this machine's. Eager's calls are all C++: ours cost 3 times as much, and
what a GPU saves by them has to be more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fangyan_kernels import linear_cross_entropy, lora_linear
from fangyan_kernels.testing.launches import Launches, record_launches
from torch import Tensor

from fangyan_bench.harness.host import host_seconds
from fangyan_bench.harness.suite import Suite, recorded_time, replay

TOKENS, HIDDEN, RANK = 16, 16, 16  # larger ones of bfloat16 take a CPU 30 us


@dataclass(frozen=True)
class Case:
    """A forward and backward of an op in bfloat16.

    Attributes:
        ours, plain: given matrices by name, the calls to compare: plain is what the op takes the place of.
        launches: kernels of ours, at most.
        at_most: of the plain call's host time.
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
        launches=5,
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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a launch is one thread's work; so are products of this size
    try:
        with record_launches() as launches:
            yield launches
    finally:
        torch.set_num_threads(threads)


def matrices() -> dict[str, Tensor]:
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


@pytest.mark.benchmark(timer=recorded_time)
@pytest.mark.parametrize("name", CASES)
def test_host(name: str, launches: Launches, suite: Suite, benchmark: Any) -> None:
    case, values = CASES[name], matrices()

    def both(forward: Callable[[dict[str, Tensor]], Tensor]) -> Callable[[], None]:
        def call() -> None:
            for value in values.values():
                value.grad = None
            output = forward(values)
            output.backward(torch.ones_like(output))

        return call

    ours, plain = both(case.ours), both(case.plain)
    ours()
    launches.clear()
    ours()
    launched = list(launches.launched)
    assert len(launched) <= case.launches, launched
    assert not launches.variants
    rounds = [(host_seconds(ours, rounds=1), host_seconds(plain, rounds=1)) for _ in range(15)]
    times, beside = zip(*rounds, strict=True)
    ratio = sorted(mine / other for mine, other in rounds)[len(rounds) // 2]
    suite.lines.append(
        f"host of {name}: {1e6 * sorted(times)[7]:.0f} us, {ratio:.2f}x of plain PyTorch's, "
        f"{len(launched)} launches: {', '.join(launched)}"
    )
    benchmark.group = "host, forward+backward, launches stubbed"
    benchmark.extra_info.update(kind="host", op=name, launches=launched, plain=list(beside), ratio=ratio)
    replay(benchmark, list(times))
    assert ratio <= case.at_most, f"{name}: {ratio:.2f}x of plain PyTorch's host time"
