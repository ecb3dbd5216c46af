"""A recipe's data, and the task that is fitted to it, before there is a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from fangyan.data.example import Splits
from fangyan.data.findings import Finding
from fangyan.data.retained import load_retained
from fangyan.data.store import cache_folder, keep_examples
from fangyan.errors import UserError
from fangyan.recipe import Recipe
from fangyan.suggestions import did_you_mean
from fangyan.tasks.checks import data_findings
from fangyan.tasks.task import Task


@dataclass(frozen=True)
class LoadedData:
    """A recipe's data, before there is a model.

    Attributes:
        splits: examples, by name.
        task: fitted to them.
        findings: on them.
        num_own: examples of train that are not replayed, which come first.
        retained: examples that show what is forgotten, by the name of the data set.
    """

    splits: Splits
    task: Task
    findings: list[Finding]
    num_own: int
    retained: Splits


def load_data(recipe: Recipe) -> LoadedData:
    """Read a recipe's data, fit its task, and check both.

    Raises:
        UserError: naming file and line, for what cannot be read or learned.
    """
    splits = recipe.data.load(recipe.seed)
    own = splits["train"]
    if replayed := recipe.data.replay.examples(recipe.seed):
        splits["train"] = keep_examples(chain(own, replayed), cache_folder(recipe.data.cache_dir))
        alone, together = (recipe.task.kind_of(train) for train in (own, splits["train"]))
        if alone != together:
            raise UserError(
                f"data.replay.source: with its labels, those of train are {together}, without {alone}; "
                "expected labels of the same kind"
            )
    task = recipe.task.build(splits, recipe.data)
    retained = load_retained(recipe.retain, recipe.seed)
    findings = [*data_findings(splits, task), *_retained_findings(retained, task)]
    return LoadedData(splits, task, findings, len(own), retained)


def _retained_findings(retained: Splits, task: Task) -> Iterator[Finding]:
    """Yield what the task cannot score right of the data sets that show what is forgotten."""
    for name, examples in retained.items():
        try:
            for note in task.notes(examples):
                yield Finding("warning", f"retain: {name}", note)
        except UserError as error:
            raise UserError(f"retain: {name}: {error}") from None


def choose_metric(recipe: Recipe, task: Task) -> str:
    """Return the dev metric that says which of two models is better.

    Raises:
        UserError: if the task does not have the recipe's.
    """
    metric = recipe.train.metric
    if metric == "auto":
        return task.primary_metric
    if metric not in task.metric_names:
        raise UserError(
            f"train.metric: {metric!r} is no metric of this task, expected one of "
            f"{', '.join(task.metric_names)}{did_you_mean(metric, task.metric_names)}"
        )
    return metric
