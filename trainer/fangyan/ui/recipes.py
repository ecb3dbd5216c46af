"""Recipes of the page: written from a few settings, edited as text, and saved as they are run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, field_validator

from fangyan.config import short
from fangyan.errors import UserError
from fangyan.files import whole_file
from fangyan.first_run.guess import Guess
from fangyan.first_run.writing import recipe_text
from fangyan.models.loading import SCRATCH
from fangyan.recipe import Recipe, parse_recipe, set_field
from fangyan.ui.files import free_name, inside
from fangyan.yaml_text import dump_yaml, parse_yaml, read_yaml, yaml_error

# Where runs are unless a recipe says otherwise.
RUNS = Path("runs")
_REPEAT = "after making room, save it again"
# Learning rates that the shipped recipes and docs/adapters.md have for an adapter, and for the whole model.
_LR_OF_ADAPTER, _LR = 1.0e-3, 3.0e-5


class Settings(BaseModel):
    """What is asked about a run; empty for what suits.

    Attributes:
        name: of the run.
        dev: a file, or a share of train.
        test: as dev, or ``none``.
        model: scratch, a folder, or a name on the hub.
        size: of a model from scratch.
        adapter: what learns.
        epochs: passes over the data.
        precision: of the numbers.
    """

    name: str = ""
    dev: str = ""
    test: str = ""
    model: str = ""
    own_model: str = ""
    size: Literal["", "tiny", "small", "base"] = ""
    adapter: Literal["", "full", "lora", "qlora"] = ""
    epochs: str = ""
    precision: Literal["", "fp32", "bf16", "fp16", "auto"] = ""

    @field_validator("*")
    @classmethod
    def _without_blanks(cls, value: str) -> str:
        return value.strip()

    @property
    def path(self) -> str | None:
        """Return the model as a recipe has it; None for what suits."""
        return self.own_model or None if self.model == "own" else self.model or None


def written(found: Guess, train: str, settings: Settings) -> tuple[str, str]:
    """Write a recipe's text.

    Args:
        found: what the file is.
        train: the file to train on.
        settings: the user's.

    Returns:
        The name of a new file for it, and its text.

    Raises:
        UserError: for a value that a recipe does not take.
    """
    if settings.model == "own" and not settings.own_model:
        raise UserError("model: missing, expected a folder, or a name on the hub such as Qwen/Qwen3-0.6B")
    if settings.own_model and settings.model != "own":
        raise UserError(
            f"model: {short(settings.own_model)} is named, but another is chosen; expected one of both"
        )
    name = settings.name or Path(train).name.partition(".")[0]
    if not re.fullmatch(r"[\w-][\w.-]{0,79}", name):
        raise UserError(
            f"name: found {short(name)}, expected up to 80 letters, digits, hyphens, dots and underscores"
        )
    name = free_name(name, ".yaml", taken=[RUNS])
    file = f"{name}.yaml"
    splits = {split: _split(getattr(settings, split), split) for split in ("dev", "test")}
    text = recipe_text(found, name, train, splits["dev"], splits["test"], settings.path, file)
    for field, value in _changes(settings, parse_yaml(text)).items():
        text = with_field(text, field, value)
    parsed(text, file)
    return file, text


def _split(value: str, name: str) -> str | float | None:
    """Return a split as a recipe has it: a file, a share, or None for what suits."""
    if value in ("", "none"):
        return None
    if re.fullmatch(r"0?\.\d+", value):
        return float(value)
    path = inside(value)
    if not path.is_file():
        raise UserError(f"{name}: {path}: no such file")
    return str(path)


def _changes(settings: Settings, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a recipe that a user's settings replace."""
    changes: dict[str, Any] = {}
    if settings.test == "none" and tree["data"].get("test") is not None:
        changes["data.test"] = None
    is_scratch = tree["model"]["path"] == SCRATCH
    if settings.size and is_scratch:
        changes["model.size"] = settings.size
    if settings.epochs:
        if not re.fullmatch(r"[1-9]\d{0,3}", settings.epochs):
            raise UserError(f"epochs: found {short(settings.epochs)}, expected a whole number from 1 to 9999")
        changes["train.epochs"] = int(settings.epochs)
    if settings.adapter and not is_scratch:
        changes["adaptation"] = _ADAPTERS[settings.adapter]
        changes["optimizer.lr"] = _LR if settings.adapter == "full" else _LR_OF_ADAPTER
        if settings.adapter != "full" and "layer_decay" in tree["optimizer"]:
            changes["optimizer.layer_decay"] = 1.0  # which is for weights that an adapter leaves alone
    if settings.precision and not is_scratch:
        changes["engine.precision"] = settings.precision
    return changes


_ADAPTERS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "lora": {"name": "lora", "rank": 16, "alpha": 32},
    "qlora": {"name": "lora", "rank": 16, "alpha": 32, "quantization": "nf4"},
}


def with_field(text: str, field: str, value: Any) -> str:
    """Return a recipe's text with a field replaced or added; the comments of other lines stay.

    Args:
        text: of sections in block style.
        field: a section, or ``section.key``.
        value: of it.
    """
    expected = parse_yaml(text)
    set_field(expected, field, value, field)
    section, _, key = field.partition(".")
    lines = text.splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith(f"{section}:")), None)
    if begin is None:
        lines += ["", f"{section}:"]
        begin = len(lines) - 1
    end = next((i for i in range(begin + 1, len(lines)) if not lines[i].startswith(" ")), len(lines))
    if key:
        new = f"  {key}: {_inline(value)}"
        place = next((i for i in range(begin, end) if lines[i].startswith(f"  {key}:")), None)
        if place is None:
            lines.insert(end, new)
        else:
            _, mark, comment = lines[place].partition(" # ")
            lines[place] = f"{new:<35} # {comment}" if mark else new
    else:
        lines[begin:end] = [f"{section}:", *(f"  {name}: {_inline(each)}" for name, each in value.items())]
    changed = "\n".join(lines) + "\n"
    # What was written is what a recipe reads; where not, comments are worth less than that.
    return changed if parse_yaml(changed) == expected else dump_yaml(expected)


def _inline(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True).removesuffix("\n...\n").strip()


def parsed(text: str, file: str) -> Recipe:
    """Return the recipe that a text holds.

    Raises:
        UserError: naming the file, and the line or field.
    """
    try:
        content = parse_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{file}{yaml_error(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected a YAML mapping of recipe fields")
    if "stages" in content:
        raise UserError(f"{file}: stages are for the terminal, expected one recipe: fangyan train {file}")
    recipe = parse_recipe(content, file)
    if recipe.data.unlabelled is not None:
        raise UserError(f"{file}: data.unlabelled makes several runs, for the terminal: fangyan train {file}")
    inside(str(recipe.folder))
    return recipe


def digest(text: str) -> str:
    """Return what tells one text of a recipe from another."""
    return hashlib.sha256(text.encode()).hexdigest()


def recipe_path(file: str) -> Path:
    """Return the path of a recipe within the folder.

    Raises:
        UserError: if it is no YAML file there.
    """
    path = inside(file)
    if path.suffix not in (".yaml", ".yml") or path.name.startswith("."):
        raise UserError(f"{path}: no name for a recipe, expected one that ends in .yaml")
    return path


def read(file: str) -> str:
    """Return the text of a recipe.

    Raises:
        UserError: if there is no such file, or it is no text.
    """
    path = recipe_path(file)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8, expected a recipe in YAML") from None


def save(file: str, text: str, before: str | None) -> Recipe:
    """Write a recipe that is right.

    Args:
        file: of it.
        text: as edited.
        before: digest of the text that was edited; None for a new file.

    Raises:
        UserError: if it is no recipe, or the file has changed meanwhile.
    """
    path = recipe_path(file)
    text = text.replace("\r\n", "\n")  # as browsers send lines
    recipe = parsed(text, str(path))
    is_there = path.exists()
    if is_there if before is None else (not is_there or digest(read(file)) != before):
        raise UserError(
            f"{path}: it was changed elsewhere meanwhile; expected that nobody else edits it: open it anew"
        )
    with whole_file(path, _REPEAT) as partial:
        partial.write_text(text, encoding="utf-8")
    return recipe


def recipes_here() -> list[Path]:
    """Return the recipes in the folder itself."""
    found = sorted(path for path in Path().glob("*.y*ml") if path.suffix in (".yaml", ".yml"))
    return [path for path in found if not path.name.startswith(".") and _is_recipe(path)]


def _is_recipe(path: Path) -> bool:
    try:
        return {"name", "data"} <= set(read_yaml(path))
    except (UserError, OSError):
        return False
