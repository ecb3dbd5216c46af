"""A recipe for a file that was guessed: few fields, and a comment on each that says why."""

from __future__ import annotations

from fangyan.first_run.guess import Guess


def recipe_text(
    guess: Guess,
    name: str,
    train: str,
    dev: str | float = 0.1,
    test: str | float | None = 0.1,
    model: str | None = None,
    file: str = "recipe.yaml",
) -> str:
    """Return a commented recipe, which :func:`fangyan.recipe.load_recipe` reads.

    Args:
        guess: what the files are.
        name: of the run.
        train: the file to train on.
        dev: a file, or the fraction of train to hold out.
        test: as dev; None for none.
        model: a folder, a name on the hub or of a packaged model, or ``scratch``; None for what suits.
        file: the recipe's own name, for its comments.
    """
    return f"name: {name}\n"
