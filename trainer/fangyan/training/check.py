"""What a recipe would train on, and what is wrong with it, before it is run: ``fangyan check``."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import psutil
import torch

from fangyan.data.batching import micro_batches
from fangyan.data.findings import Finding
from fangyan.data.packing import collate
from fangyan.device import device, on_gpu, reset_peak_memory
from fangyan.errors import UserError
from fangyan.models.structure import num_parameters
from fangyan.recipe import Recipe
from fangyan.training.following import check_trackers
from fangyan.training.loaded_data import LoadedData, load_data
from fangyan.training.memory import MemoryEstimate, estimate_memory
from fangyan.training.plan import Plan, Ranks, plan
from fangyan.training.workload import Workload

# Micro-batches that are laid out to see what padding costs, and that are timed.
_LAID_OUT = 100
_TIMED = 3


@dataclass
class Report:
    """What a check says. Where an error stops it, what follows is missing.

    Attributes:
        name: of the recipe.
        findings: errors and warnings.
        splits: per split its ``examples``, ``units`` (tokens, or characters of text) and ``sub-words``.
        unit: what a unit is.
        labels: per split how often each label occurs.
        lengths: how many sequences of train have up to so many sub-words, by powers of two.
        empty: fractions of a batch that are padding: as the run lays them out, and with a sequence per row.
        model: its class, parameters and layout.
        memory: of one rank.
        seconds: of training's forwards and backwards, on one rank.
        plan: what several ranks send each other; None of one.
    """

    name: str
    findings: list[Finding] = field(default_factory=list)
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    unit: str = "tokens"
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)
    empty: dict[str, float] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    memory: MemoryEstimate | None = None
    seconds: float | None = None
    plan: Plan | None = None

    @property
    def errors(self) -> list[Finding]:
        """Return what stops a run."""
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """Return what does not."""
        return [finding for finding in self.findings if finding.level == "warning"]


def check(recipe: Recipe, meant: Ranks | None = None) -> Report:
    """Load a recipe's data and model, and report on both; nothing is trained, and no file written.

    Args:
        recipe: of the run that is meant.
        meant: ranks of that run, by default one.
    """
    meant = meant or Ranks(1)
    ranks = meant.number
    report = Report(recipe.name)
    reset_peak_memory()  # of whatever this process has done before
    try:
        data = load_data(recipe)
        report.findings += data.findings
        _describe_data(report, data)
        workload = Workload(recipe, data)
        report.findings += workload.findings[len(data.findings) :]
        report.findings += [Finding.parse("warning", message) for message in workload.messages]
        _describe_sequences(report, workload, ranks)
        report.memory = estimate_memory(workload, ranks)
        report.findings += _memory_findings(report.memory, meant.on_a_node)
        report.seconds = time_training(workload, ranks)
        if ranks > 1:
            report.plan = plan(workload, meant, report.seconds / workload.total_steps)
        check_trackers(recipe)
    except UserError as error:
        report.findings.append(Finding.parse("error", str(error)))
    return report


def _describe_data(report: Report, data: LoadedData) -> None:
    for name, examples in data.splits.items():
        units = sum(len(data.task.inputs(example)) for example in examples)
        report.splits[name] = {"examples": len(examples), "units": units}
    is_text = isinstance(data.task.inputs(data.splits["train"][0]), str)
    report.unit = "characters" if is_text else "tokens"
    report.labels = data.task.label_counts(data.splits)


def _describe_sequences(report: Report, workload: Workload, ranks: int) -> None:
    model = workload.model
    for name, examples in workload.splits.items():
        lengths = workload.lengths
        if name != "train":
            arguments = examples, workload.tokenizer, workload.max_length, workload.cache
            lengths = workload.task.tokenize_all(*arguments).lengths
        report.splits[name]["sub-words"] = int(lengths.sum())
    bins = Counter(1 << (int(length) - 1).bit_length() for length in workload.lengths)
    report.lengths = dict(sorted(bins.items()))
    report.empty = _empty_places(workload, ranks)
    report.model = {
        "class": type(model.base).__name__,
        "parameters": sum(num_parameters(p) for p in model.parameters()),
        "trained": sum(num_parameters(p) for p in model.parameters() if p.requires_grad),
        "layout": model.layout,
        "steps": workload.total_steps,
    }


def _empty_places(workload: Workload, ranks: int) -> dict[str, float]:
    """Return which fraction of micro-batches is padding, in the run's layout and with a sequence per row."""
    count = ranks * workload.recipe.train.gradient_accumulation_steps
    full = packed = padded = 0
    for batch in islice(workload.batches[0], _LAID_OUT):
        for members in micro_batches(batch, workload.lengths, min(count, len(batch))):
            sequences = [workload.sequences[i] for i in members]
            full += sum(len(sequence.input_ids) for sequence in sequences)
            packed += collate(sequences, 0, workload.model.row_width).input_ids.numel()
            padded += collate(sequences, 0, 0).input_ids.numel()
    return {"packed": 1 - full / packed, "padded": 1 - full / padded}


def _memory_findings(memory: MemoryEstimate, ranks: int) -> list[Finding]:
    """Return a warning if this machine has less memory than so many ranks are estimated to need."""
    total, needed = psutil.virtual_memory().total, memory.peak * ranks
    if on_gpu():
        total, needed = torch.cuda.get_device_properties(device()).total_memory, memory.peak
    if needed < total:
        return []
    message = (
        f"the run needs {needed / 1e9:.1f} GB, and there are {total / 1e9:.1f} GB; expected fewer tokens, "
        "more train.gradient_accumulation_steps, or train.gradient_checkpointing"
    )
    return [Finding("warning", "train.batch_tokens", message)]


def time_training(workload: Workload, ranks: int) -> float:
    """Return the seconds that one rank's forwards and backwards take, by a few that are measured here.

    Optimizer, evaluation and what ranks wait for each other come on top.
    """
    count = ranks * workload.recipe.train.gradient_accumulation_steps
    batches = workload.batches[0]
    chosen = batches[:: -(-len(batches) // _TIMED)][:_TIMED]
    workload.model.train()
    tokens, seconds = 0, 0.0
    for batch in chosen:
        members = micro_batches(batch, workload.lengths, min(count, len(batch)))[0]
        started = time.perf_counter()
        loss = workload.recipe.objective.loss(workload.model, workload.micro_batch(members, "time"), 1.0)
        loss.backward()
        if on_gpu():
            torch.cuda.synchronize()
        seconds += time.perf_counter() - started
        tokens += int(workload.lengths[members].sum())
        workload.model.zero_grad()
    everything = int(workload.lengths.sum()) * workload.recipe.train.epochs
    return seconds / tokens * everything / ranks
