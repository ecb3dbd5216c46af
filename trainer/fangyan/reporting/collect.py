"""What is known of a run from its folder alone, whether it has ended or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fangyan.data.example import Example
from fangyan.data.formats import parse_data
from fangyan.data.splits import DataConfig, read_examples
from fangyan.errors import UserError
from fangyan.inference.run_records import BEST, read_records
from fangyan.reporting import predictions
from fangyan.reporting.facts import Facts, read_json
from fangyan.reporting.predictions import MOST_KEPT, Calibrated, Prediction
from fangyan.tasks.report import Report
from fangyan.tasks.task import Metrics
from fangyan.yaml_text import read_yaml

# Splits with errors to look at, what a run is judged by first.
SPLITS = ("test", "dev")
_HEAD = ("kind", "step", "epoch", "split")


@dataclass(frozen=True)
class Known:
    """What a run folder says.

    Attributes:
        folder: of the run.
        recipe: every field of it.
        recipe_text: as YAML.
        facts: what the run knew of itself; None of a run of an earlier version.
        records: of ``metrics.jsonl``, in order.
        reports: scores of each class of the best checkpoint, by split.
        predictions: of it, by split, of the first examples.
        examples: as many of each of these splits.
        calibrations: of its probabilities, by split.
        data: how its files are read.
        finished: whether the model was exported.
    """

    folder: Path
    recipe: dict[str, Any]
    recipe_text: str
    facts: Facts | None
    records: list[dict[str, Any]]
    reports: dict[str, Report]
    predictions: dict[str, list[Prediction]]
    examples: dict[str, Sequence[Example]]
    calibrations: dict[str, Calibrated]
    data: DataConfig
    finished: bool

    @property
    def name(self) -> str:
        """Return the recipe's name."""
        return str(self.recipe.get("name", self.folder.name))

    @property
    def task(self) -> str:
        """Return the name of what the model learns."""
        section = self.recipe.get("task")
        return str(section.get("name", "")) if isinstance(section, dict) else ""

    @cached_property
    def before(self) -> dict[str, Metrics]:
        """Return the metrics of each split before training."""
        records = (r for r in self.of_kind("evaluation") if r["step"] == 0)
        return {split: numbers(r) for r in records if not (split := str(r.get("split"))).endswith(BEST)}

    @cached_property
    def after(self) -> dict[str, Metrics]:
        """Return the metrics of each split of the best checkpoint; nothing of a run that has not ended."""
        records = self.of_kind("evaluation")
        return {
            split.removesuffix(BEST): numbers(r)
            for r in records
            if (split := str(r.get("split"))).endswith(BEST)
        }

    @property
    def floor(self) -> dict[str, Metrics]:
        """Return the metrics of a guess."""
        return {} if self.facts is None else self.facts.floor

    @cached_property
    def dev(self) -> list[tuple[int, Metrics]]:
        """Return the metrics of dev before training and after each epoch, with the steps done."""
        records = self.of_kind("evaluation")
        return [(r["step"], numbers(r)) for r in records if r.get("split") == "dev"]

    @property
    def metric(self) -> str | None:
        """Return the metric that picks the best checkpoint; None where neither run nor recipe says it."""
        if self.facts is not None:
            return self.facts.metric
        names = dict.fromkeys(name for _, metrics in self.dev for name in metrics)
        section = self.recipe.get("train")
        named = section.get("metric") if isinstance(section, dict) else None
        if named in names:
            return str(named)
        return next(iter(names)) if len(names) == 1 else None

    @property
    def scored_split(self) -> str:
        """Return the split that the run is judged by."""
        return next((name for name in SPLITS if name in self.after), "dev")

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Return the records of a kind that say at which step they are."""
        return [r for r in self.records if r.get("kind") == kind and isinstance(r.get("step"), int)]

    def series(self, kind: str, field: str) -> list[tuple[int, float]]:
        """Return a field of a kind's records over the steps."""
        found = ((r["step"], numbers(r).get(field)) for r in self.of_kind(kind))
        return [(step, value) for step, value in found if value is not None]


def numbers(record: dict[str, Any]) -> Metrics:
    """Return what a record has beside its kind and place."""
    return {
        name: float(value)
        for name, value in record.items()
        if name not in _HEAD and isinstance(value, int | float) and not isinstance(value, bool)
    }


def collect(folder: Path) -> Known:
    """Read a run folder; no model is loaded.

    Raises:
        UserError: if it is none, or naming the file in it that is damaged.
    """
    path, metrics = folder / "recipe.yaml", folder / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{folder}: no run folder, expected one with its recipe.yaml")
    recipe = read_yaml(path)
    data = recipe.get("data")
    if not isinstance(data, dict):
        raise UserError(f"{path}: data: missing; this field is required")
    reports = {name: read_json(folder / "reports" / f"{name}-best.json", Report) for name in SPLITS}
    kept = {name: predictions.read(folder, name) for name in SPLITS}
    calibrations = {name: predictions.read_calibration(folder, name) for name in SPLITS}
    said = {name: found for name, found in kept.items() if found is not None}
    return Known(
        folder,
        recipe,
        path.read_text(encoding="utf-8"),
        Facts.read(folder),
        list(read_records(metrics)) if metrics.is_file() else [],
        {name: found for name, found in reports.items() if found is not None},
        said,
        {name: _examples(folder, name, len(found)) for name, found in said.items()},
        {name: found for name, found in calibrations.items() if found is not None},
        parse_data(data, str(path)),
        (folder / "model").is_dir(),
    )


def _examples(folder: Path, split: str, count: int) -> Sequence[Example]:
    """Return the first examples of a split, as many as have predictions."""
    path = folder / "splits" / f"{split}.jsonl"
    found = read_examples(path, most=MOST_KEPT)
    if len(found) != count:
        raise UserError(
            f"{predictions.path_of(folder, split)}: {count:,} predictions, expected {len(found):,}, as many "
            f"as {path} has examples; the run can be reported on without this file"
        )
    return found
