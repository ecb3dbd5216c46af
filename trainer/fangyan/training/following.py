"""What follows a run: the recipe's trackers, and a user's own callbacks."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch.distributed as dist

from fangyan.recipe import Recipe
from fangyan.trackers.callback import Callback, Listeners
from fangyan.training.state import State

# The folders of several runs of one recipe, which all have its name.
_ONE_OF_SEVERAL = re.compile(r"seed-\d+(-fold-\d+)?|fold-\d+|trial-\d+")


def check_trackers(recipe: Recipe) -> None:
    """Refuse to start a run whose trackers could not.

    Raises:
        UserError: naming the first, and what it lacks.
    """
    for tracker in recipe.trackers:
        tracker.check()


def listeners(
    recipe: Recipe, callbacks: Sequence[Callback], resumed: State | None, say: Callable[[str], None]
) -> Listeners:
    """Return what follows a run, on its first rank alone.

    Args:
        recipe: of the run.
        callbacks: the user's.
        resumed: where the run goes on.
        say: writes a sentence to the log.
    """
    following: list[Callback] = []
    if dist.get_rank() == 0:
        following = [*(tracker.build() for tracker in recipe.trackers), *callbacks]
    step = None if resumed is None else resumed.step
    return Listeners(following, say, (run_name(recipe), recipe.folder, recipe.model_dump(mode="json"), step))


def run_name(recipe: Recipe) -> str:
    """Return the name that tells a run from others of its recipe, such as ``my-ner-seed-0``."""
    several = [part for part in recipe.folder.parts[-2:] if _ONE_OF_SEVERAL.fullmatch(part)]
    return "-".join([recipe.name, *several])
