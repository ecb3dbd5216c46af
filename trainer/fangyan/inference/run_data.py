"""The data that a run folder's model is scored on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fangyan.config import short
from fangyan.data.example import Example
from fangyan.data.formats import parse_data
from fangyan.data.formats.sources import named_sources
from fangyan.data.splits import DataConfig, by_data_set, read_examples
from fangyan.errors import UserError
from fangyan.suggestions import did_you_mean
from fangyan.yaml_text import read_yaml


def examples_of(
    folder: Path, data: Sequence[str] | None = None, source: str | None = None, command: str = "evaluate"
) -> Sequence[Example]:
    """Return what a run's model is scored on.

    Args:
        folder: of the run.
        data: files of the run's format; by default the run's own test split, else its dev split.
        source: of which of several data sets they are.
        command: that needs them, for the message.

    Raises:
        UserError: if it is no run folder, or a file is not of its format, or there is no example.
    """
    config = data_config(folder, command)
    if data:
        examples = config.of_source(source).read_files(data)
    else:
        examples = read_examples(folder / "splits" / f"{scored_split(folder)}.jsonl")
        if source is not None:
            found = by_data_set(examples)
            if source not in found:
                expected = f"expected one of {', '.join(found)}" if found else "but the run has one data set"
                hint = did_you_mean(source, found)
                raise UserError(f"--source: found {short(source)}, {expected}{hint}")
            examples = found[source]
    if not examples:
        raise UserError(f"{', '.join(data or [])}: no example in it, expected at least one")
    return examples


def scored_split(folder: Path) -> str:
    """Return the name of the split that a run is scored on by default: test, or dev where there is none."""
    return "test" if (folder / "splits" / "test.jsonl").is_file() else "dev"


def data_config(folder: Path, command: str) -> DataConfig:
    """Return how a run's files are read.

    Raises:
        UserError: if it is no run folder.
    """
    recipe = folder / "recipe.yaml"
    if not recipe.is_file():
        raise UserError(f"{command} needs a run folder with its recipe.yaml, found a model alone")
    return parse_data(data_section(recipe), str(recipe))


def data_section(recipe: Path) -> dict[str, Any]:
    """Return what a run's recipe.yaml says of its data.

    Raises:
        UserError: if it says nothing.
    """
    content = read_yaml(recipe).get("data")
    if not isinstance(content, dict):
        raise UserError(f"{recipe}: data: missing; this field is required")
    return content


def source_names(run: Path) -> list[str]:
    """Return the names of a run's data sets, where its recipe has several; nothing of an exported model."""
    recipe = run / "recipe.yaml"
    sources = data_section(recipe).get("sources") if recipe.is_file() else None
    return [str(name) for name, _ in named_sources(sources)] if isinstance(sources, list) else []
