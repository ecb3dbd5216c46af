"""A recipe of several stages: partial recipes over what they have in common, each on the model of the last.

model: {path: google-bert/bert-base-multilingual-cased}
stages:
  - {name: reading, task: {name: masked_lm}, data: {format: text, train: stories.txt}}
  - {name: tagging, data: {format: conll, train: train.conll}}
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fangyan.config import family_of, short
from fangyan.errors import UserError
from fangyan.recipe import Recipe, parse_recipe, read_recipe

STAGES = "stages"
# Of a stage's folder: its model with an adapter merged into it, for the next stage.
MERGED = "merged"


@dataclass(frozen=True)
class StagedRecipe:
    """Several runs, one after the other.

    Attributes:
        name: of the whole.
        folder: of the whole, with a run folder for each stage.
        stages: a recipe each, by the name of its folder.
    """

    name: str
    folder: Path
    stages: dict[str, Recipe]


def load_training(path: str | Path, overrides: list[str] | None = None) -> Recipe | StagedRecipe:
    """Read a recipe that may have stages; see :func:`fangyan.recipe.load_recipe`."""
    content, source = read_recipe(path, overrides)
    if STAGES not in content:
        return parse_recipe(content, source)
    return parse_stages(content, source)


def parse_stages(content: Mapping[str, Any], source: str) -> StagedRecipe:
    """Check the recipe of every stage.

    Raises:
        UserError: naming the stage and the field, what was found and what was expected.
    """
    common = {key: value for key, value in content.items() if key != STAGES}
    name = common.get("name")
    if not isinstance(name, str):
        raise UserError(f"{source}: name is {short(name)}, expected one for the stages together")
    run_dir = common.pop("run_dir", None)
    if run_dir is not None and not isinstance(run_dir, str):
        raise UserError(f"{source}: run_dir is {short(run_dir)}, expected a folder")
    folder = Path(os.path.expanduser(run_dir)) if run_dir else Path("runs") / name
    stages: dict[str, Recipe] = {}
    for stage_name, stage in _named(content[STAGES], source):
        if stage_name in stages:
            raise UserError(f"{source}: {STAGES}: {stage_name} is there twice, expected names that differ")
        place = f"{source}: {STAGES}: {stage_name}"
        merged = merge_sections(common, stage)
        merged |= {"name": f"{name}-{stage_name}", "run_dir": os.path.join(".", folder, stage_name)}
        if stages:
            merged["model"] = _after(list(stages.values())[-1], merged, stage, place)
        stages[stage_name] = parse_recipe(merged, place)
        if stages[stage_name].data.unlabelled is not None:
            raise UserError(f"{place}: data.unlabelled makes several runs of a stage, expected none")
    return StagedRecipe(name, folder, stages)


def _named(stages: Any, source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the fields of each stage."""
    if not isinstance(stages, list) or len(stages) < 2:
        raise UserError(f"{source}: {STAGES} is {short(stages)}, expected two partial recipes or more")
    for number, stage in enumerate(stages, start=1):
        if not isinstance(stage, dict):
            raise UserError(
                f"{source}: {STAGES}: stage {number} is {short(stage)}, expected a partial recipe"
            )
        name = stage.get("name", f"stage-{number}")
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,39}", name):
            raise UserError(f"{source}: {STAGES}: name is {short(name)}, expected a short name of a folder")
        for field in (STAGES, "run_dir", "seed", "tune"):
            if field in stage:
                raise UserError(
                    f"{source}: {STAGES}: {name}: {field} is given, expected it for the stages together, "
                    "or not at all"
                )
        yield name, {key: value for key, value in stage.items() if key != "name"}


def _after(before: Recipe, merged: Mapping[str, Any], stage: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the section ``model`` of a stage: what the one before has exported."""
    own = stage.get("model", {})
    if not isinstance(own, dict) or "path" in own or "pretrained" in own:
        raise UserError(
            f"{place}: model is {short(own)}, expected neither path nor pretrained: it is the stage before's"
        )
    if before.adaptation.added_tokens:
        raise UserError(
            f"{place}: the stage before is {before.adaptation.name}, which cannot be merged into its model; "
            "expected another adaptation there"
        )
    model = merged.get("model", {})
    kept = {key: value for key, value in model.items() if key not in ("path", "pretrained", "size")}
    kept.pop("extend_vocabulary", None)  # of the first stage
    folder = "model" if before.adaptation.trains_base_weights else MERGED
    return {**kept, **own, "path": str(before.folder / folder)}


def merge_sections(common: Mapping[str, Any], stage: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's tree with a stage's fields over those in common.

    A section that names another member of its family (another task, format, optimizer) takes its place.
    """
    merged = dict(common)
    for key, value in stage.items():
        base = merged.get(key)
        if isinstance(value, Mapping) and isinstance(base, Mapping) and _same_member(key, base, value):
            value = {**base, **value}
        merged[key] = value
    return merged


def _same_member(section: str, base: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    field = Recipe.model_fields.get(section)
    family = None if field is None else family_of(field)
    if family is None or family.tag not in value:
        return True
    return bool(value[family.tag] == base.get(family.tag, family.default))
