"""What a run on several ranks costs beside one rank's steps, from formulas: nothing here is measured.

Bytes are those that each rank sends in an optimizer step, as DeepSpeed 0.19.8 asks for them; the formulas of
Rajbhandari et al. 2020 (ZeRO) are the same but for what docs/distributed.md explains, with measurements.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from rich.table import Table

from fangyan.data.batching import Lengths, micro_batches
from fangyan.device import on_gpu
from fangyan.errors import UserError
from fangyan.models.structure import num_parameters
from fangyan.training.engine import activation_dtype
from fangyan.training.workload import Workload

STAGES = (0, 1, 2, 3)
# Weights that ZeRO-3 has gathered for a forward stay for the backward if fewer than 1e9 elements, DeepSpeed's
# reuse distance, are used in between: in a model of half as many, even the first layer's.
_STAYING = 500_000_000


@dataclass(frozen=True)
class Ranks:
    """Ranks of a run, and the nodes that they are on.

    Args:
        number: of ranks.
        per_node: ranks of each node; None where all are on one.
        bandwidth: of each node towards the others, GB/s; None where it is not asked for.

    Raises:
        UserError: if the ranks do not fill nodes, or there is one node and a bandwidth.
    """

    number: int
    per_node: int | None = None
    bandwidth: float | None = None

    def __post_init__(self) -> None:
        """Refuse what does not fit."""
        if self.per_node is not None and self.number % self.per_node:
            raise UserError(
                f"--ranks-per-node: {self.per_node} does not divide {self.number} ranks, expected full nodes"
            )
        if self.bandwidth is not None and self.nodes == 1:
            raise UserError(
                f"--bandwidth: is between nodes, but {self.number} ranks are on one; expected a smaller "
                "--ranks-per-node"
            )

    @property
    def on_a_node(self) -> int:
        """Return the ranks of each node."""
        return self.per_node or self.number

    @property
    def nodes(self) -> int:
        """Return the number of nodes."""
        return self.number // self.on_a_node


@dataclass(frozen=True)
class Plan:
    """What ranks send and how even their shares are.

    Attributes:
        ranks: of the run.
        stage: of the recipe.
        sent: bytes that each rank sends in a step, by ZeRO stage.
        compute: seconds of a step's forwards and backwards on one rank, as this machine does them.
        busiest: how much more sub-words the busiest rank has than the mean, as a fraction.
    """

    ranks: Ranks
    stage: int
    sent: dict[int, float]
    compute: float
    busiest: float

    def seconds(self, stage: int) -> float | None:
        """Return how long a step's bytes take between nodes; None without a bandwidth.

        A ring of all ranks leaves each node once: a node sends what one rank sends.
        """
        bandwidth = self.ranks.bandwidth
        return None if bandwidth is None else self.sent[stage] / (1e9 * bandwidth)

    def as_json(self) -> dict[str, Any]:
        """Return the plan as JSON has it, per rank and step: bytes and seconds."""
        return {
            "computed, not measured": True,
            "ranks": self.ranks.number,
            "nodes": self.ranks.nodes,
            "bandwidth": self.ranks.bandwidth,
            "busiest rank": self.busiest,
            "compute": self.compute,
            "stages": {
                str(stage): {"bytes": nbytes, "seconds": self.seconds(stage)}
                for stage, nbytes in self.sent.items()
            },
        }


def plan(workload: Workload, ranks: Ranks, compute: float) -> Plan:
    """Return what a run on these ranks costs.

    Args:
        workload: of the run, whose model has the dtype that it trains in.
        ranks: of the run.
        compute: seconds of a step's forwards and backwards on one rank.
    """
    recipe = workload.recipe
    parameters = list(workload.model.parameters())
    accumulation = recipe.train.gradient_accumulation_steps
    sent = {
        stage: bytes_sent(
            stage,
            ranks.number,
            accumulation,
            trained=activation_dtype(recipe.engine).itemsize
            * sum(p.numel() for p in parameters if p.requires_grad),
            weights=sum(p.nbytes for p in parameters),
            elements=sum(num_parameters(p) for p in parameters),
            scatters=on_gpu(),
        )
        for stage in STAGES
    }
    busiest = busiest_rank(workload.batches[0], workload.lengths, ranks.number, accumulation)
    return Plan(ranks, recipe.engine.zero_stage, sent, compute, busiest)


def bytes_sent(
    stage: int, ranks: int, accumulation: int, *, trained: int, weights: int, elements: int, scatters: bool
) -> float:
    """Return the bytes that each rank sends in an optimizer step, through a ring.

    An all-reduce passes everything twice (scattered sums, then gathered), a reduce-scatter and an all-gather
    once, each but for a rank's own part. Stages 0 and 1 reduce gradients once per step, 2 and 3 in every
    micro-batch; DeepSpeed all-reduces them up to stage 2, and 1 and 2 gather what the optimizer has stepped.
    Stage 3 gathers all weights in every micro-batch, frozen ones too.

    Args:
        stage: of ZeRO.
        ranks: of the run.
        accumulation: micro-batches per rank and step.
        trained: bytes of the weights that learn, and of their gradients.
        weights: bytes of all weights.
        elements: how many weights there are.
        scatters: whether a reduce-scatter is one; gloo makes an all-reduce of it.
    """
    if stage == 3:
        gathers = 1 if elements <= _STAYING else 2
        passed = accumulation * ((1 if scatters else 2) * trained + gathers * weights)
    else:
        passed = 2 * trained * (accumulation if stage == 2 else 1) + (trained if stage else 0)
    return passed * (ranks - 1) / ranks


def busiest_rank(
    batches: Iterable[Sequence[int]], lengths: Lengths, ranks: int, accumulation: int = 1
) -> float:
    """Return how much more sub-words than the mean the rank with most has, over steps, as a fraction.

    The others wait for it in every step. Padding is left out.

    Args:
        batches: of the steps, indices of sequences.
        lengths: sub-words of each sequence.
        ranks: of the run.
        accumulation: micro-batches per rank and step.
    """
    most = everything = 0
    for batch in batches:
        loads = np.zeros(ranks * accumulation, np.int64)
        for i, members in enumerate(micro_batches(batch, lengths, min(len(loads), len(batch)))):
            loads[i] = sum(int(lengths[member]) for member in members)
        most += int(loads.reshape(ranks, accumulation).sum(1).max())
        everything += int(loads.sum())
    return most * ranks / everything - 1


def plan_table(found: Plan) -> Table:
    """Return a plan as a table for a terminal."""
    ranks = found.ranks
    between = f", {ranks.bandwidth:g} GB/s between them" if ranks.bandwidth is not None else ""
    nodes = "1 node" if ranks.nodes == 1 else f"{ranks.nodes:,} nodes"
    table = Table(
        title=f"Computed, not measured: {ranks.number:,} ranks on {nodes}{between}", title_justify="left"
    )
    columns: list[tuple[str, Literal["left", "right"]]] = [
        ("ZeRO", "left"),
        ("MB sent per rank and step", "right"),
    ]
    if ranks.bandwidth is not None:
        columns += [("ms between nodes", "right"), ("ms of forwards and backwards, here", "right")]
    for column, justify in columns:
        table.add_column(column, justify=justify)
    for stage, nbytes in found.sent.items():
        seconds = found.seconds(stage)
        times = [] if seconds is None else [f"{1e3 * seconds:,.1f}", f"{1e3 * found.compute:,.1f}"]
        name = f"{stage} (the recipe's)" if stage == found.stage else str(stage)
        table.add_row(name, f"{nbytes / 1e6:,.1f}", *times)
    return table
