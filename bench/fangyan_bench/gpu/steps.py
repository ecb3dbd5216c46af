"""The steps part: whole training steps, each implementation in a process of its own, and the memory they take."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from fangyan_bench.gpu.record import Budget, Record, Row
from fangyan_bench.harness.machine import measure_peak_rates
from fangyan_bench.harness.statistics import ratio
from fangyan_bench.harness.stepping import ROOT, StepResult, measure_steps
from fangyan_bench.harness.timing import TimingBudget, describe_error

RECIPE = ROOT / "trainer" / "fangyan" / "recipes" / "cantonese-pos.yaml"
OURS = "fangyan"
TIMING_BUDGET = TimingBudget(min_rounds=3, max_rounds=9, seconds=8.0)
DRY_TIMING_BUDGET = TimingBudget(1, 1, 0.1)


@dataclass(frozen=True)
class StepEntry:
    """A model's whole step.

    Attributes:
        step: the file in ``steps/``.
        recipe: what the step is opened with; ``{settings}`` is the recipe, ``{bert}`` a BERT-base's folder.
        names: implementations; ours among them.
        planned: seconds: processes and models start, then warm-up and rounds.
    """

    name: str
    step: str
    recipe: str
    names: tuple[str, ...]
    planned: float


# As many tokens a step as keep a large card busy; both sides take as many.
_TOKENS = "train.batch_tokens=16384"
ENTRIES = (
    StepEntry(
        "tagger, BERT-base",
        "tagger",
        f"{{settings}} engine.precision=bf16 model.path={{bert}} {_TOKENS}",
        ("HF Trainer, equal tokens", "fangyan without its kernels", OURS),
        60.0,
    ),
    StepEntry("Qwen3 8B, LoRA", "lora_lm", "8B|{settings} engine.precision=bf16", ("PEFT", OURS), 50.0),
    StepEntry("Qwen3 8B, NF4", "lora_lm", "8B, NF4|{settings} engine.precision=bf16", ("PEFT", OURS), 60.0),
)
DRY_ENTRIES = (StepEntry("tagger, ELECTRA", "tagger", "{settings} train.batch_tokens=64", (OURS,), 10.0),)


def run(record: Record, seconds: float, dry: bool) -> None:
    """Every model that fits; without what the trainer needs, all of them are missing."""
    budget = Budget(seconds)
    peak_rates = measure_peak_rates()
    torch.cuda.empty_cache()  # the implementations' processes share the card
    peak = peak_rates.flops[torch.float32 if dry else torch.bfloat16]
    for entry in DRY_ENTRIES if dry else ENTRIES:
        if record.finished(entry.name):
            continue
        if entry.planned > budget.left:
            reason = f"it needs {entry.planned:.0f} s, {budget.left:.0f} s are left"
            record.put(entry.name, "skipped", reason=reason)
            continue
        record.running(entry.name, None, {})
        start = time.perf_counter()
        try:
            found = _measure(entry, DRY_TIMING_BUDGET if dry else TIMING_BUDGET, peak)
            record.put(entry.name, "done", seconds=time.perf_counter() - start, **found)
        except ImportError as error:
            record.put(entry.name, "missing", reason=str(error))
        except Exception as error:
            record.put(entry.name, "failed", reason=describe_error(error))


def _measure(entry: StepEntry, timing_budget: TimingBudget, peak: float) -> Row:
    from fangyan_bench.steps.tagger import load_setup, write_bert_base

    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        if "{bert}" in entry.recipe:
            write_bert_base(Path(folder), load_setup(str(RECIPE)))
        recipe = entry.recipe.format(settings=RECIPE, bert=folder)
        results = measure_steps(entry.step, recipe, entry.names, timing_budget, failed)
    if not results:
        raise RuntimeError(f"no implementation has ended a step: {failed}")
    ours = results.get(OURS)
    return {
        "implementations": {name: _row(result, ours, peak) for name, result in results.items()},
        "failed": failed,
    }


def _row(result: StepResult, ours: StepResult | None, peak: float) -> Row:
    tokens = 1 / statistics.median(result.seconds_per_token)
    faster = ratio(result.seconds_per_token, ours.seconds_per_token).median if ours else None
    return {
        "tokens_per_second": tokens,
        "seconds_per_token": result.seconds_per_token,
        "ours_is_faster_by": faster,
        "flops_utilisation": tokens * result.flops_per_token / peak,
        "peak_memory": result.peak_memory,
        "first_call_seconds": result.first_call_seconds,
    }
