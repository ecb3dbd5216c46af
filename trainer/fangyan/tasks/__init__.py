"""What a model can learn. A task knows data and scores; it does not know the engine."""

from __future__ import annotations

from fangyan.data.examples import Example
from fangyan.recipe import Recipe
from fangyan.tasks.language_modelling import LanguageModelling
from fangyan.tasks.token_tagging import TokenTagging

__all__ = ["LanguageModelling", "Task", "TokenTagging", "build_task"]

Task = TokenTagging | LanguageModelling


def build_task(recipe: Recipe, parts: dict[str, list[Example]]) -> Task:
    """The recipe's task, fitted to its data.

    Raises:
        UserError: for a tag that is not in the recipe's own tag set.
    """
    if recipe.task.name == "language_modelling":
        return LanguageModelling()
    task = TokenTagging.from_data(recipe.task, parts)
    for example in (example for part in parts.values() for example in part):
        task.classes(example)
    return task
