"""A recipe's data, and the task that is fitted to it, before there is a model."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from fangyan.data.example import Splits
from fangyan.data.findings import Finding
from fangyan.data.retained import load_retained
from fangyan.data.store import cache_folder, keep_examples
from fangyan.errors import UserError
from fangyan.recipe import Recipe
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
    task = recipe.task.build(splits, recipe.data)
    retained = load_retained(recipe.retain, recipe.seed)
    return LoadedData(splits, task, data_findings(splits, task), len(own), retained)


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
            f"{', '.join(task.metric_names)}"
        )
    return metric
