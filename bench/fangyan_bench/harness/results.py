"""Results of a run: one row per benchmark, stored as one line of JSON each.

``--benchmark-json`` stores every round: 67,000 lines for the 900 benchmarks of a full run. What is committed
is what the reports read, the medians and their spread.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from fangyan_bench.harness.stats import summarize

Row = dict[str, Any]

# What a row is of; the rest of it is what was measured.
IDENTITY = ("kind", "op", "shape", "pass", "task", "model", "implementation", "dim", "ranks", "stage")
DIGITS = 9  # significant ones: enough that tables round as if from the full value


def make_row(kind: str, rounds: Sequence[float], **fields: Any) -> Row:
    """Return the row of a benchmark.

    Args:
        kind: ``op``, ``step``, ``host``, ``scaling``, ``time to score`` or ``ranks``.
        rounds: seconds, one per round; only their summary is stored.
        fields: what else to store; a dataclass is stored by its fields, None is left out.
    """
    row = {"kind": kind, **fields, "seconds": summarize(rounds)}
    return {name: _plain(value) for name, value in row.items() if value is not None}


def identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what tells a row from all others of a machine."""
    return tuple(row.get(name) for name in IDENTITY)


def read(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """Read a results file.

    Returns:
        The run (machine, versions, command, date) and its rows.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["run"], content["benchmarks"]


def write(path: Path, run: Mapping[str, Any], rows: Iterable[Row]) -> None:
    """Write a results file with one row per line, so that a new measurement is one changed line."""
    header = json.dumps(run, indent=1, ensure_ascii=False)
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{\n"run": {header},\n"benchmarks": [\n{lines}\n]\n}}\n', encoding="utf-8")


def merge(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Replace the old rows that were measured again, in their place; append those that are new."""
    measured = {identity(row): row for row in new}
    kept = [measured.pop(identity(row), row) for row in old]
    return [*kept, *measured.values()]


def title(row: Mapping[str, Any]) -> str:
    """Return the title of the table that a row stands in: the group of its benchmark."""
    named = ("op", "shape", "pass", "task", "model")
    fields = ", ".join(str(row[name]) for name in named if name in row)
    unit = "seconds per token" if row["kind"] in ("step", "ranks") else ""
    return ", ".join(part for part in (row["kind"], fields, unit) if part)


def label(row: Mapping[str, Any]) -> str:
    """Return what names a row within its table."""
    others = ", ".join(f"{name} {row[name]}" for name in ("dim", "ranks", "stage") if name in row)
    return str(row.get("implementation", others))


def _plain(value: Any) -> Any:
    """Return a value as JSON holds it, its floats rounded to the digits that mean something."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value
