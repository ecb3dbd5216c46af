"""The recipes of a search: with values from its spaces in place of the recipe's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fangyan.config import short
from fangyan.errors import UserError
from fangyan.recipe import Recipe, parse_recipe, set_field
from fangyan.training.tune.space import Space
from fangyan.yaml_text import dump_yaml

# What names runs, and what has to be the same for scores to be compared; sections stand for all in them.
_FIXED = ("name", "run_dir", "seed", "trackers", "tune", "data", "task.name", "task.scheme", "train.metric")


def check_spaces(recipe: Recipe) -> dict[str, Space]:
    """Return what a recipe searches, by field, if each bound and each choice makes a recipe.

    Raises:
        UserError: naming the first field that cannot be searched so.
    """
    if not recipe.tune:
        raise UserError(
            "tune: the recipe has none, expected what to try by field, such as "
            "tune: {optimizer.lr: {log: [1.0e-5, 1.0e-3]}}"
        )
    for field, space in recipe.tune.items():
        _check_field(field, recipe.tune)
        for value in space.values:
            with_values(recipe, {field: value})
    return recipe.tune


def _check_field(field: str, others: Iterable[str]) -> None:
    for fixed in _FIXED:
        if _is_within(field, fixed) or _is_within(fixed, field):
            raise UserError(
                f"tune.{field}: found a field that is the same in all trials, expected one of how a model is "
                "trained, such as optimizer.lr"
            )
    for other in others:
        if other != field and _is_within(field, other):
            raise UserError(f"tune.{field}: found it beside {other}, which holds it, expected one of both")


def _is_within(field: str, section: str) -> bool:
    return f"{field}.".startswith(f"{section}.")


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return a recipe as its user wrote it, with other values of some fields, and nothing to search.

    Raises:
        UserError: naming the values and what is wrong with them.
    """
    content = recipe.model_dump(mode="json", exclude_unset=True, exclude={"tune"})
    source = ", ".join(f"tune.{field}={short(value)}" for field, value in values.items())
    for field, value in values.items():
        set_field(content, field, value, source)
    return parse_recipe(content, source)


def trial_recipe(recipe: Recipe, values: Mapping[str, Any], folder: Path) -> Recipe:
    """Return the recipe of a trial, which has no file of a test split to read.

    Raises:
        UserError: if the values do not go together.
    """
    changed = with_values(recipe, values)
    return changed.model_copy(update={"data": changed.data.without_test(), "run_dir": str(folder)})


def best_recipe(recipe: Recipe, values: Mapping[str, Any], folder: Path) -> str:
    """Return the user's recipe with the best values, as YAML.

    Args:
        recipe: of the search.
        values: of the best trial.
        folder: for the run.
    """
    changed = with_values(recipe, values).model_copy(update={"run_dir": str(folder)})
    return dump_yaml(changed.model_dump(mode="json", exclude_unset=True))
