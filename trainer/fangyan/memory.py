"""What a recipe needs of memory, before it is run: ``fangyan check``.

Bytes a parameter are counted from the model; what a pass keeps for its backward is measured, in one pass
over the largest share of a step. Peaks are a rank's: resident memory on the CPU (with Python's and the
libraries' own), the allocator's on a GPU.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fangyan.data.order import split_step
from fangyan.data.packing import collate
from fangyan.engine import device, gradient_buffer
from fangyan.loop import Material, load_material
from fangyan.optimizer import FULL_PRECISION_GROUPS, parameter_groups
from fangyan.recipe import Recipe
from fangyan.report import memory_in_use

# Bytes of state a number: in 32 bits, and in 8, where every 256 numbers have a scale beside each code.
_STATES = {"adamw": 2, "adamw8bit": 2, "paged_adamw8bit": 2, "lion8bit": 1, "ademamix8bit": 3, "sgd": 1}
# Beside each rank on the CPU: 69 MB of DeepSpeed's buffers, which all ranks map, and what gloo takes (as
# seen with two ranks).
_SHARED = 120e6
# bitsandbytes keeps smaller tensors in 32 bits, where it sees single ones.
_LEAST_8BIT = 4096


@dataclass(frozen=True)
class Part:
    """What one thing takes on one rank.

    Attributes:
        numbers: that it is kept for, over all ranks.
        nbytes: on each rank.
        on_cpu: whether it lives beside the CPU although the model is on a GPU.
    """

    name: str
    numbers: int
    nbytes: float
    on_cpu: bool = False


@dataclass(frozen=True)
class Needs:
    """Of one rank.

    Attributes:
        parts: what there is at the time of the peak.
        peak: their sum, without what an accelerator's rank keeps beside the CPU.
    """

    parts: list[Part]

    @property
    def peak(self) -> float:
        return sum(part.nbytes for part in self.parts if not part.on_cpu)


def check(recipe: Recipe, ranks: int) -> Needs:
    """Loads the recipe's data and model, runs one pass, and counts.

    Args:
        ranks: of the run that is meant.
    """
    before = memory_in_use()
    material = load_material(recipe)
    model = material.packed
    if recipe.engine.precision == "bf16":
        model.bfloat16()
    model.to(device())
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) + _quantization(model)
    libraries = max(memory_in_use() - weights, before)
    passes = measure_pass(material, recipe, ranks)
    number = sum(p.numel() for p in model.parameters() if p.requires_grad)
    width = 2 if recipe.engine.precision == "bf16" else 4
    if recipe.engine.zero_stage == 0:  # gradients and their copy, for the sum over ranks
        passes = max(passes, 2 * width * number)
    return Needs(
        [
            Part("Python, libraries, data", 0, libraries),
            *_training(recipe, model, weights, ranks, number, width),
            Part("a pass and its gradients, measured", 0, passes),
        ]
    )


def _training(
    recipe: Recipe, model: nn.Module, weights: int, ranks: int, number: int, width: int
) -> list[Part]:
    """Weights, master copy, states and DeepSpeed's vectors of gradients, at each stage.

    Args:
        number, width: how many numbers are trained, and bytes of each in a pass.
    """
    stage, offload = recipe.engine.zero_stage, recipe.engine.offload == "optimizer"
    half = width == 2
    shared = math.ceil(number / ranks)
    away = offload and device().type != "cpu"
    everything = sum(p.numel() for p in model.parameters())
    parts = [Part("weights", everything, weights)]
    if stage == 3:  # a pass gathers all of them beside each rank's own
        parts.append(Part("weights, this rank's", everything, weights / ranks))
        parts.append(Part("gradients, this rank's", number, width * shared))
        # Arranged by rank, and handed out.
        parts.append(Part("gradients, on their way between ranks", number, 2 * width * number))
    if stage == 0 and not half:
        parts.append(Part("gradients, kept between steps", number, width * number))
    if stage > 0:
        parts.append(Part("gradients, DeepSpeed's buffer", number, width * gradient_buffer(number)))
    if stage in (1, 2) or half:
        parts.append(Part("gradients in 32 bits, this rank's", number, 4 * shared, away))
    if offload:
        parts.append(Part("gradients in 32 bits, summed over passes", number, 4 * shared, away))
    if stage > 0 or half:
        parts.append(Part("master weights in 32 bits", number, 4 * shared, away))
    parts.append(Part("optimizer states", number, _states(recipe, model) / (ranks if stage else 1), away))
    if ranks > 1 and device().type == "cpu":
        parts.append(Part("buffers between ranks", 0, _SHARED * ranks))
    return parts


def _states(recipe: Recipe, model: nn.Module) -> float:
    kept = _STATES[recipe.optimizer.name]
    total = 0.0
    for group in parameter_groups(model, recipe.optimizer):
        for parameter in group["params"]:
            coded = recipe.optimizer.name.endswith("8bit") and group["name"] not in FULL_PRECISION_GROUPS
            if recipe.engine.zero_stage == 0 and parameter.numel() < _LEAST_8BIT:
                coded = False
            total += kept * parameter.numel() * (1 + 4 / 256 if coded else 4)
    return total


def _quantization(model: nn.Module) -> int:
    """Scales of 4-bit weights."""
    states = [p.quant_state for p in model.parameters() if hasattr(p, "quant_state")]
    return sum(state.absmax.nbytes for state in states)


def measure_pass(material: Material, recipe: Recipe, ranks: int) -> float:
    """Bytes that a forward and backward over the largest share of a step take.

    Gradients come as what the forward kept goes, so the peak is less than both.
    """
    settings = recipe.train
    shares = [
        share
        for steps in material.plan
        for step in steps
        for share in split_step(step, material.lengths, ranks * settings.gradient_accumulation_steps)
    ]
    largest = max(shares, key=lambda share: sum(material.lengths[i] for i in share))
    model = material.packed
    batch = collate(
        [material.windows[i] for i in largest], material.tokenizer.pad_token_id, model.row_width
    ).to(device())
    model.train()
    _forget_peak()
    before = memory_in_use()
    model(batch).backward()
    taken = _peak() - before
    model.zero_grad()
    return taken


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        # What loading has freed goes back first: a pass would fill it unseen.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the high-water mark


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def table(needs: Needs, recipe: Recipe, ranks: int) -> Any:
    """The needs as a table for a terminal."""
    from rich.table import Table

    engine = recipe.engine
    shown = Table(
        title=f"{recipe.name}: a rank of {ranks}, ZeRO {engine.zero_stage}, {engine.precision}, "
        f"{recipe.optimizer.name}, offload {engine.offload}",
        title_justify="left",
    )
    for column, justify in (("what", "left"), ("bytes a parameter", "right"), ("MB", "right")):
        shown.add_column(column, justify=justify)  # type: ignore[arg-type]
    for part in needs.parts:
        each = f"{part.nbytes / part.numbers:.2f}" if part.numbers else ""
        name = f"{part.name} (beside the CPU)" if part.on_cpu else part.name
        shown.add_row(name, each, f"{part.nbytes / 1e6:,.0f}")
    shown.add_section()
    shown.add_row("peak", "", f"{needs.peak / 1e6:,.0f}")
    return shown
