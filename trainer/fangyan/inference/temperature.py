"""The temperature of an exported model: what its scores are divided by before they become probabilities."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from fangyan.files import REPEAT, whole_file

# Its name in the ``fangyan`` section of config.json, which need not have it.
TEMPERATURE = "temperature"


def store_temperature(folder: Path, temperature: float) -> None:
    """Write into an exported model's configuration what its scores are divided by to be probabilities.

    Args:
        folder: of the model.
        temperature: above 0.

    Raises:
        UserError: if the file cannot be written; the earlier one stays.
    """
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["fangyan"][TEMPERATURE] = temperature
    with whole_file(path, REPEAT) as partial:
        partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def is_temperature(value: Any) -> bool:
    """Return whether a field of an export can be a temperature."""
    return type(value) in (int, float) and 0.0 < value < math.inf
