"""What a run knows of itself that nothing else in its folder says: ``RUN/report/run.json``."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from fangyan.errors import UserError
from fangyan.files import whole_file

T = TypeVar("T")


@dataclass
class Facts:
    """Of a run, for its report.

    Attributes:
        started: when, in ISO 8601, as the next.
        command: by which it was started, or [] where it was from Python.
        ranks: how many.
        device: of each.
        environment: versions and hardware, by name.
        findings: on the data: level, place and message of each.
        splits: per split its ``examples``, ``units`` and, of train, ``sub-words``.
        unit: what a unit is.
        labels: per split how often each label occurs.
        counted: most examples of a split that ``units`` and ``labels`` were counted in.
        model: its class.
        metric: which says which of two models is better.
        greater_is_better: of that metric.
        metric_unit: of all metrics, or "".
        floor: metrics of a guess, per split; known at the end, as all below.
        finished: when.
        tokens_per_second: sub-words trained on, over the time of the steps alone.
        peak_memory_gb: of the rank that took most.
    """

    started: str
    command: list[str]
    ranks: int
    device: str
    environment: dict[str, str]
    findings: list[dict[str, str]]
    splits: dict[str, dict[str, int]]
    unit: str
    labels: dict[str, dict[str, int]]
    counted: int
    model: str
    metric: str
    greater_is_better: bool
    metric_unit: str
    floor: dict[str, dict[str, float]] = field(default_factory=dict)
    finished: str | None = None
    tokens_per_second: float | None = None
    peak_memory_gb: float | None = None

    def write(self, folder: Path) -> None:
        """Write them into a run folder."""
        write_json(path_in(folder), asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Facts | None:
        """Return those of a run folder; None of a run of an earlier version, which has none.

        Raises:
            UserError: if the file is damaged.
        """
        return read_json(path_in(folder), cls)


def path_in(folder: Path) -> Path:
    """Return where a run folder has them."""
    return folder / "report" / "run.json"


def write_json(path: Path, content: Any) -> None:
    """Write a value as JSON has it; null for a number that is not finite."""
    with whole_file(path) as partial:
        text = json.dumps(_finite(content), ensure_ascii=False, indent=1)
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_json(path: Path, kind: type[T]) -> T | None:
    """Return what a file holds, as a dataclass; None where there is no such file.

    Raises:
        UserError: if it holds something else.
    """
    if not path.is_file():
        return None
    try:
        return pydantic.TypeAdapter(kind).validate_json(path.read_bytes())
    except pydantic.ValidationError as error:
        raise damaged(path, error) from None


def damaged(path: Path | str, error: pydantic.ValidationError) -> UserError:
    """Return the sentence about a file that is not as fangyan writes it."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return UserError(
        f"{path}: damaged{f' at {where}' if where else ''} ({first['msg']}), expected what fangyan writes; "
        "the run can be reported on without this file"
    )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
