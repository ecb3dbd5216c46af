"""What a GPU run measures of the ops, most valuable first, and the seconds planned for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fangyan_bench.harness.op import Implementation, Op, Shape
from fangyan_bench.harness.timing import SAMPLE_SECONDS, TimingBudget
from fangyan_bench.ops.linear_cross_entropy import ours

TIMING_BUDGET = TimingBudget(min_rounds=5, max_rounds=9, seconds=0.6)  # of eager calls, and again of graphs
PREPARING = 0.5  # seconds of a implementation: first calls from a warm cache, values, capture, memory
COMPILING = 2.5  # more for torch.compile, its graphs found in the cache
PROFILING = 0.6  # for each of ours
DRAWING = 1.0  # of an entry: inputs, and the reference in float64


@dataclass(frozen=True)
class Entry:
    """An op at a shape, and its implementations.

    Attributes:
        op: its name.
        shape: to run at.
        names: implementations that the op declares.
        more: implementations for this run alone.
    """

    op: str
    shape: Shape
    names: tuple[str, ...]
    more: tuple[Implementation, ...] = ()

    def __str__(self) -> str:
        return f"{self.op}/{self.shape}"

    def implementations(self, op: Op) -> list[Implementation]:
        """Return the entry's implementations."""
        return [c for c in op.implementations if c.name in self.names] + list(self.more)


def planned_seconds(entry: Entry, call_seconds: float) -> float:
    """Return the seconds of warm-up and rounds of all implementations.

    Args:
        entry: what to plan.
        call_seconds: of a forward and backward at the floor; three times that is planned.
    """
    implementations = len(entry.names) + len(entry.more)
    sample = max(SAMPLE_SECONDS, 3 * call_seconds)
    rounds = max(
        TIMING_BUDGET.min_rounds,
        min(TIMING_BUDGET.max_rounds, int(TIMING_BUDGET.seconds / (implementations * sample))),
    )
    timing = 2 * implementations * sample * (rounds + 2)  # calls and graphs, each calibrated by two
    extra = COMPILING * ("torch.compile" in entry.names)
    extra += PROFILING * sum("fangyan" in name for name in (*entry.names, *(c.name for c in entry.more)))
    return DRAWING + implementations * PREPARING + timing + extra


BOTH_PATHS = tuple(
    Implementation(f"fangyan, {kind}", "ours", ours(impl=f"triton_{kind}"))
    for kind in ("small_vocab", "large_vocab")
)
ALL_HEADS = ("eager", "torch.compile", "products alone", "Liger", "Cut Cross-Entropy", "fangyan")
FEW_HEADS = ("eager", "products alone", "fangyan")
ALL_LORA = ("eager", "torch.compile", "frozen linear", "PEFT", "addmm", "fangyan")
FEW_LORA = ("eager", "frozen linear", "PEFT", "fangyan")
K_STEP = ("eager", "frozen linear", "K step")
NF4 = ("eager", "frozen linear", "frozen linear, plain weight", "PEFT", "fangyan")


def _head(
    name: str, tokens: int, hidden: int, classes: int, names: Sequence[str], paths: bool = False
) -> Entry:
    sizes = {"T": tokens, "H": hidden, "C": classes, "L": 15 if name == "masked" else 100}
    shape = Shape(name, sizes, "cuda", torch.bfloat16)
    return Entry("linear_cross_entropy", shape, tuple(names), BOTH_PATHS if paths else ())


def _lora(
    op: str, inner: int, rank: int, dropout: int, names: Sequence[str], layer: str = "attention"
) -> Entry:
    sizes = {"T": 8192, "K": inner, "N": inner, "R": rank, "P": dropout}
    return Entry(op, Shape(layer, sizes, "cuda", torch.bfloat16), tuple(names))


ENTRIES = (
    _head("tags", 65536, 1024, 7, ALL_HEADS),
    _lora("lora_linear", 4096, 16, 0, ALL_LORA),
    _head("vocabulary", 8192, 768, 21128, ALL_HEADS),
    _lora("lora_linear_nf4", 4096, 16, 0, NF4),
    _head("vocabulary", 8192, 4096, 128256, ALL_HEADS),
    _head("tags", 65536, 1024, 32, FEW_HEADS, paths=True),
    _head("tags", 65536, 1024, 188, FEW_HEADS, paths=True),
    _lora("lora_linear", 4096, 16, 10, FEW_LORA),
    _lora("lora_linear", 8192, 16, 0, (*FEW_LORA, "addmm")),
    _head("tags", 65536, 1024, 16, FEW_HEADS, paths=True),
    _head("tags", 65536, 1024, 64, FEW_HEADS, paths=True),
    _head("vocabulary", 8192, 768, 21121, FEW_HEADS),
    _lora("lora_linear", 8192, 64, 0, FEW_LORA),
    _head("tags", 65536, 4096, 7, FEW_HEADS),
    _head("masked", 8192, 768, 21128, (*FEW_HEADS, "fangyan, labels not counted")),
    _head("vocabulary", 65536, 768, 2000, FEW_HEADS),
    _lora("lora_linear", 768, 16, 0, FEW_LORA),
    _head("tags", 2048, 768, 9, FEW_HEADS),
    # Last, and apart from ours: its kernel waits on barriers, and one that hangs costs only these.
    _lora("lora_linear", 4096, 16, 0, K_STEP, "k-step"),
    _lora("lora_linear", 8192, 16, 0, K_STEP, "k-step"),
)


# The same on the CPU at sizes that take no time, to try everything but the GPU.
_TAGS = Shape("tags", {"T": 64, "H": 32, "C": 7, "L": 100})
_LAYER = Shape("attention", {"T": 64, "K": 32, "N": 32, "R": 4, "P": 0})
DRY_ENTRIES = (
    Entry("linear_cross_entropy", _TAGS, (*FEW_HEADS, "Liger")),
    Entry("lora_linear", _LAYER, ("eager", "frozen linear", "addmm", "K step", "fangyan")),
    Entry("lora_linear_nf4", replace(_LAYER, sizes={**_LAYER.sizes, "K": 64}), ("eager", "fangyan")),
)
