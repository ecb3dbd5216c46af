"""Whole training steps, optimizer included: one file per task."""

from __future__ import annotations

from fangyan_bench.harness.steps import StepSpec
from fangyan_bench.steps.common import PADDED_LENGTH, StepTrial
from fangyan_bench.trainer_access import load_setup


def open_step(spec: StepSpec, implementation: str) -> StepTrial:
    """Return an implementation's steps, ready to take their turn (``fangyan_bench.harness.timing.Timed``)."""
    from fangyan_bench.steps import lora_lm, masked_lm, recipes, tagger

    tasks = {"lora_lm": lora_lm, "masked_lm": masked_lm, "recipes": recipes, "tagger": tagger}
    selected = tasks[spec.task].implementations(spec.size)[implementation]
    return StepTrial(selected, load_setup(spec.recipe, spec.overrides, PADDED_LENGTH))
