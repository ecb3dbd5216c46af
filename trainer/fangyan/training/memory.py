"""What a recipe needs of memory, before it is run: ``fangyan estimate-memory``.

Bytes per parameter are counted from the model; what a micro-batch and an evaluation take is measured, in one
forward and backward over the largest micro-batch, and one forward over the largest batch of evaluation. Peaks
are per rank: resident memory on the CPU (with Python's and the libraries' own), the allocator's on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from rich.table import Table
from torch import nn

from fangyan.data.batching import bucket_by_length, micro_batches
from fangyan.data.packing import collate
from fangyan.device import device, memory_in_use, on_gpu, peak_memory, reset_peak_memory
from fangyan.inference.shards import SHARD_SIZE
from fangyan.models.structure import num_parameters
from fangyan.optimizers.param_groups import FULL_PRECISION_GROUPS, parameter_groups
from fangyan.recipe import Recipe
from fangyan.tasks.evaluation import BATCH_TOKENS
from fangyan.training.engine import activation_dtype, gradient_buffer
from fangyan.training.workload import Workload

# What a micro-batch frees on the CPU, the C library keeps in pieces, and an evaluation finds a part of its
# memory there: half, where it was nothing to all of it in six runs.
_KEPT = 0.5
# Elements that ZeRO-3 gathers at a time, at most: DeepSpeed's stage3_prefetch_bucket_size.
_GATHERED = 50_000_000
# Epochs in which the largest micro-batch is looked for.
_EPOCHS = 100
# bitsandbytes keeps smaller tensors in 32 bits, where it sees single ones.
_LEAST_8BIT = 4096


@dataclass(frozen=True)
class MemoryItem:
    """Memory of one component on one rank.

    Attributes:
        name: of the component.
        elements: that it is kept for, in total over all ranks; 0 where it is not per element.
        nbytes: on each rank.
        on_cpu: whether it is in the CPU's memory although the model is on a GPU.
    """

    name: str
    elements: int
    nbytes: float
    on_cpu: bool = False


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of one rank.

    Attributes:
        items: what there is from the first step on.
        step: what a step takes beside them.
        scoring: what is there from the first evaluation of an epoch on.
        after_epoch: what evaluation and export take, one at a time.
        loading: the peak before the first step.
        num_epochs: of the run.
    """

    items: list[MemoryItem]
    step: MemoryItem
    scoring: MemoryItem
    after_epoch: list[MemoryItem]
    loading: float
    num_epochs: int

    def as_json(self) -> dict[str, float]:
        """Return bytes by name, as JSON has them."""
        items = (*self.items, self.step, self.scoring, *self.after_epoch)
        return {"peak": self.peak, "loading": self.loading} | {item.name: item.nbytes for item in items}

    @property
    def peak(self) -> float:
        """Return the most that there is at a time, without what a GPU's rank keeps in the CPU's memory."""
        lasting = sum(item.nbytes for item in self.items if not item.on_cpu)
        step, scoring = self.step.nbytes, self.scoring.nbytes
        kept = 0.0 if on_gpu() else _KEPT * step
        most = max(item.nbytes for item in self.after_epoch if not item.on_cpu)
        in_step = step + (scoring if self.num_epochs > 1 else 0.0)
        return max(self.loading, lasting + in_step, lasting + scoring + most + kept)


def estimate_memory(workload: Workload, ranks: int) -> MemoryEstimate:
    """Run a forward and backward, and an evaluation's forward, and count.

    Args:
        workload: of the run that is meant, in the process that has loaded it.
        ranks: of that run.
    """
    recipe, model = workload.recipe, workload.model
    dtype = activation_dtype(recipe.engine)
    if dtype != torch.float32:
        model.to(dtype)
    model.to(device())
    loading = peak_memory()
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) + _quantization(model)
    reset_peak_memory()
    before = memory_in_use()
    workload.task.report([], [])  # imports the library that scores, which takes 120 MB
    scoring = max(memory_in_use() - before, 0)
    evaluation = measure_evaluation(workload)
    reset_peak_memory()  # what it has freed goes back to the system, and is not counted twice
    libraries = max(memory_in_use() - weights - scoring, 0)
    activations = measure_micro_batch(workload, ranks)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    width = dtype.itemsize
    if recipe.engine.zero_stage == 0:  # gradients and their copy, for the sum over ranks
        activations = max(activations, 2 * width * trained)
    return MemoryEstimate(
        [
            MemoryItem("Python, libraries, data", 0, libraries),
            *_training(recipe, model, weights, ranks, trained, width),
        ],
        MemoryItem("a micro-batch and its gradients, measured", 0, activations),
        MemoryItem("the library that scores", 0, scoring, on_gpu()),
        [
            MemoryItem("an evaluation batch, measured", 0, evaluation),
            MemoryItem("the export", 0, _export(workload, width * trained), on_gpu()),
        ],
        loading,
        recipe.train.epochs,
    )


def _export(workload: Workload, trained: int) -> float:
    """Return bytes of the copies that an export writes, in the CPU's memory.

    Args:
        workload: of the run.
        trained: bytes of what the optimizer steps.
    """
    sizes = [num_parameters(p) for p in workload.model.parameters()]
    everything = sum(sizes)
    if workload.base is None:
        width = activation_dtype(workload.recipe.engine).itemsize
        largest = width * max(sizes)
        return min(width * everything, max(SHARD_SIZE, largest) + largest)  # see write_shards
    # A base that others cannot load by its name is loaded again, and written beside the adapter.
    return trained + (0 if workload.recipe.model.is_on_hub_or_disk else 4 * everything)


def _training(
    recipe: Recipe, model: nn.Module, weights: int, ranks: int, trained: int, width: int
) -> list[MemoryItem]:
    """Return weights, master copy, states and DeepSpeed's vectors of gradients, at each stage.

    Args:
        recipe: of the run.
        model: its model.
        weights: bytes of the model.
        ranks: of the run.
        trained: elements that the optimizer steps.
        width: bytes of each in a forward.
    """
    stage, offload = recipe.engine.zero_stage, recipe.engine.offload == "optimizer"
    half = width == 2
    shard = math.ceil(trained / ranks)
    away = offload and on_gpu()
    everything = sum(num_parameters(p) for p in model.parameters())
    items = [MemoryItem("weights", everything, weights)]
    if stage == 3:  # a forward gathers all of them beside each rank's own
        items.append(MemoryItem("weights, this rank's", everything, weights / ranks))
        items.append(MemoryItem("gradients, this rank's", trained, width * shard))
        # Arranged by rank, and handed out.
        items.append(MemoryItem("gradients, on their way between ranks", trained, 2 * width * trained))
        if ranks > 1 and not on_gpu():
            # gloo copies what it gathers, and of small copies its threads keep up to as much. An all-reduce
            # takes 2 MB, and a group of ranks at rest nothing.
            copies = 2 * min(weights, width * _GATHERED)
            items.append(MemoryItem("weights, gloo's copies of them", everything, copies))
    if stage == 0 and not half:
        items.append(MemoryItem("gradients, kept between steps", trained, width * trained))
    if stage > 0:
        items.append(MemoryItem("gradients, DeepSpeed's buffer", trained, width * gradient_buffer(trained)))
    if stage in (1, 2) or half:
        items.append(MemoryItem("gradients in 32 bits, this rank's", trained, 4 * shard, away))
    if offload:
        items.append(MemoryItem("gradients in 32 bits, accumulated", trained, 4 * shard, away))
    if stage > 0 or half:
        items.append(MemoryItem("master weights in 32 bits", trained, 4 * shard, away))
    states = _states(recipe, model) / (ranks if stage else 1)
    items.append(MemoryItem("optimizer states", trained, states, away))
    if kept := recipe.objective.bytes_per_parameter:
        nbytes = kept * (shard if stage else trained)
        items.append(MemoryItem("the objective's, of the weights at the beginning", trained, nbytes, away))
    return items


def _states(recipe: Recipe, model: nn.Module) -> float:
    """Return bytes of optimizer states: in 32 bits, or in 8 with a 32-bit scale per 256."""
    optimizer = recipe.optimizer
    total = 0.0
    for group in parameter_groups(model, optimizer):
        for parameter in group["params"]:
            in_8bits = optimizer.has_8bit_states and group["name"] not in FULL_PRECISION_GROUPS
            if recipe.engine.zero_stage == 0 and parameter.numel() < _LEAST_8BIT:
                in_8bits = False
            total += optimizer.states_per_parameter * parameter.numel() * (1 + 4 / 256 if in_8bits else 4)
    return total


def _quantization(model: nn.Module) -> int:
    """Return bytes of the scales of 4-bit weights."""
    states = [p.quant_state for p in model.parameters() if hasattr(p, "quant_state")]
    return sum(state.absmax.nbytes for state in states)


def measure_micro_batch(workload: Workload, ranks: int) -> float:
    """Return the bytes that a forward and backward over the largest micro-batch take.

    Gradients are allocated as activations are freed, so the peak is less than both.
    """
    count = ranks * workload.recipe.train.gradient_accumulation_steps
    everything = (
        members
        for batches in islice(workload.batches, _EPOCHS)
        for batch in batches
        for members in micro_batches(batch, workload.lengths, min(count, len(batch)))
    )
    largest = max(everything, key=lambda members: int(workload.lengths[members].sum()))
    model = workload.model
    batch = workload.micro_batch(largest, "memory")
    model.train()
    reset_peak_memory()
    before = memory_in_use()
    workload.recipe.objective.loss(model, batch, 1.0).backward()
    taken = peak_memory() - before
    model.zero_grad()
    return taken


def measure_evaluation(workload: Workload) -> float:
    """Return the bytes that the largest batch of evaluation takes."""
    model, task = workload.model, workload.task
    examples = max((workload.splits[name] for name in workload.splits if name != "train"), key=len)
    sequences = task.tokenize_all(
        examples, workload.tokenizer, workload.max_length, workload.cache, scored=True
    )
    batches = bucket_by_length(sequences.lengths, BATCH_TOKENS)
    largest = max(batches, key=lambda members: int(sequences.lengths[members].sum()))
    model.eval()
    reset_peak_memory()
    before = memory_in_use()
    batch = collate([sequences[i] for i in largest], workload.tokenizer.pad_id, model.row_width).to(device())
    with torch.no_grad():
        task.outputs(model, batch)
    taken = peak_memory() - before
    reset_peak_memory()  # trims what was freed
    return taken


def memory_table(estimate: MemoryEstimate, recipe: Recipe, ranks: int) -> Table:
    """Return the estimate as a table for a terminal."""
    engine = recipe.engine
    table = Table(
        title=f"{recipe.name}: one rank of {ranks}, ZeRO {engine.zero_stage}, {engine.precision}, "
        f"offload {engine.offload}",
        title_justify="left",
    )
    columns: tuple[tuple[str, Literal["left", "right"]], ...] = (
        ("component", "left"),
        ("bytes per parameter", "right"),
        ("MB", "right"),
    )
    for column, justify in columns:
        table.add_column(column, justify=justify)
    for item in (*estimate.items, estimate.step, estimate.scoring, *estimate.after_epoch):
        each = f"{item.nbytes / item.elements:.2f}" if item.elements else ""
        name = f"{item.name} (in the CPU's memory)" if item.on_cpu else item.name
        table.add_row(name, each, f"{item.nbytes / 1e6:,.0f}")
        if item in (estimate.items[-1], estimate.step):
            table.add_section()  # of what follows, a step or the end of an epoch has its own
    table.add_section()
    table.add_row("loading", "", f"{estimate.loading / 1e6:,.0f}")
    table.add_section()
    table.add_row("peak", "", f"{estimate.peak / 1e6:,.0f}")
    return table
