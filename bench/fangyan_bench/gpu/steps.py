"""The steps part: time and memory of whole training steps, each implementation in its own process."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fangyan_bench.gpu.record import Budget, Record, Row
from fangyan_bench.harness.machine import measure_peak_rates
from fangyan_bench.harness.stats import ratio
from fangyan_bench.harness.steps import QUICK_DATA, StepResult, StepSpec, measure_steps
from fangyan_bench.harness.timing import TimingBudget, describe_error

RECIPE = "cantonese-pos"
BF16 = "engine.precision=bf16"
OURS = "fangyan"
TIMING_BUDGET = TimingBudget(min_rounds=3, max_rounds=9, seconds=8.0)
DRY_TIMING_BUDGET = TimingBudget(1, 1, 0.1)


@dataclass(frozen=True)
class StepEntry:
    """A model's whole step.

    Attributes:
        name: of the entry.
        spec: the step.
        implementations: by name; ours among them.
        planned: seconds: processes and models start, then warm-up and rounds.
        bert_base: whether the recipe's model is replaced by one of BERT-base's size.
    """

    name: str
    spec: StepSpec
    implementations: tuple[str, ...]
    planned: float
    bert_base: bool = False


# As many tokens per step as keep a large card busy, for both sides.
_TAGGER = StepSpec("tagger", RECIPE, (BF16, "train.batch_tokens=16384"))
_TAGGERS = ("HF Trainer, equal tokens", "fangyan without its kernels", OURS)
ENTRIES = (
    StepEntry("tagger, BERT-base", _TAGGER, _TAGGERS, 60.0, bert_base=True),
    StepEntry("Qwen3 8B, LoRA", StepSpec("lora_lm", RECIPE, (BF16,), "8B"), ("PEFT", OURS), 50.0),
    StepEntry("Qwen3 8B, NF4", StepSpec("lora_lm", RECIPE, (BF16,), "8B, NF4"), ("PEFT", OURS), 60.0),
)
_DRY_TAGGER = StepSpec("tagger", RECIPE, (*QUICK_DATA, "train.batch_tokens=64"))
DRY_ENTRIES = (StepEntry("tagger, ELECTRA", _DRY_TAGGER, (OURS,), 10.0),)


def run(record: Record, seconds: float, dry: bool) -> None:
    """Measure every model that fits the time; without the trainer's dependencies, all are missing."""
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
    # Without the trainer's dependencies this raises ImportError, and the entry is missing.
    from fangyan_bench.steps.common import PADDED_LENGTH
    from fangyan_bench.steps.tagger import write_bert_base
    from fangyan_bench.trainer_access import load_setup

    with tempfile.TemporaryDirectory() as folder:
        spec = entry.spec
        if entry.bert_base:
            write_bert_base(Path(folder), load_setup(RECIPE, (), PADDED_LENGTH))
            spec = replace(spec, overrides=(*spec.overrides, f"model.path={folder}"))
        measured = measure_steps(spec, entry.implementations, timing_budget)
    if not measured.results:
        raise RuntimeError(f"no implementation has ended a step: {measured.failed}")
    ours = measured.results.get(OURS)
    return {
        "implementations": {name: _row(each, ours, peak) for name, each in measured.results.items()},
        "failed": measured.failed,
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
