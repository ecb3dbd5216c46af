"""Whole training steps, optimizer included, a file a task."""

from __future__ import annotations

from typing import Any


def open_step(step: str, implementation: str, recipe: str) -> Any:
    """Steps of a implementation, ready to take their turn (see :class:`fangyan_bench.harness.timing.Timed`)."""
    from fangyan_bench.steps import lora_lm, masked_lm, tagger

    return {"lora_lm": lora_lm, "masked_lm": masked_lm, "tagger": tagger}[step].open_implementation(
        implementation, recipe
    )
