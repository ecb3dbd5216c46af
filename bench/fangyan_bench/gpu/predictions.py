"""What was predicted of a GPU before there was one, beside what is measured: bench/predictions.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PREDICTIONS = Path(__file__).parents[2] / "predictions.json"


def predictions() -> dict[str, Any]:
    """Return, by ``OP/SHAPE`` or ``OP/SHAPE IMPLEMENTATION``: ``over`` what, ``ratio`` range, ``why``."""
    found: dict[str, Any] = (
        json.loads(PREDICTIONS.read_text(encoding="utf-8")) if PREDICTIONS.exists() else {}
    )
    return found


def of_entry(name: str) -> dict[str, Any]:
    """Return an entry's predictions, by implementation."""
    found = {key: value for key, value in predictions().items() if f"{key} ".startswith(f"{name} ")}
    return {key.removeprefix(name).strip() or "fangyan": value for key, value in found.items()}


def compare(prediction: Mapping[str, Any], own: float, others: Mapping[str, float]) -> dict[str, Any]:
    """Compare the measured ratio with the predicted one.

    Args:
        prediction: ``over`` and ``ratio``.
        own: seconds of the implementation that it is of.
        others: seconds by what a prediction may be over: the floor, or a implementation's name.

    Returns:
        ``over``, ``predicted``, ``measured`` and ``missed_by``: 1 within the predicted range, above 1 slower
        than predicted by this factor, below 1 faster. Without what it is over, the last two are None.
    """
    over, (low, high) = prediction["over"], prediction["ratio"]
    found = {"over": over, "predicted": [low, high], "measured": None, "missed_by": None}
    if over not in others:
        return found
    measured = own / others[over]
    nearest = min(max(measured, low), high)
    return found | {"measured": measured, "missed_by": measured / nearest}
