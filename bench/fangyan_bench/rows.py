"""Files of results, one JSON object per line, to which measurements that take hours are added one by one."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def rows_of(results: Path) -> list[dict[str, Any]]:
    """Return what a file of results has."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.is_file() else []
    return [json.loads(line) for line in lines]


def add_row(results: Path, row: Mapping[str, Any]) -> None:
    """Print a result, and append it to a file."""
    line = json.dumps(row)
    print(line, flush=True)
    with results.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def mean_cell(values: Sequence[float]) -> str:
    """Return the mean of some seeds, and their standard deviation where there are several."""
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"
