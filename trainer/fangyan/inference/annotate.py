"""Files with a model's predictions in place of their tags, labels or answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from fangyan.config import short
from fangyan.data.compression import suffix
from fangyan.data.formats import FORMATS, parse_data, with_defaults
from fangyan.data.formats.records import PREDICTED
from fangyan.data.formats.sources import named_sources
from fangyan.data.splits import DataConfig, TaggedDataConfig
from fangyan.errors import UserError
from fangyan.inference.load import load
from fangyan.inference.run_data import data_section, source_names
from fangyan.models.files import read_config
from fangyan.tasks import TASKS
from fangyan.tasks.task import TaskConfig
from fangyan.yaml_text import parse_yaml, read_yaml, yaml_error

# Formats by the ending of a file's name; others are texts, one per line.
ENDINGS = {
    ".conllu": "conllu",
    ".conll": "conll",
    ".bio": "conll",
    ".iob": "conll",
    ".iob2": "conll",
    ".jsonl": "jsonl",
    ".csv": "csv",
    ".tsv": "conll",
    ".parquet": "datasets",
    ".cha": "chat",
}


def format_of(
    run: Path, file: Path, wanted: str | None = None, source: str | None = None
) -> TaggedDataConfig | None:
    """Return how a file is read and written, or None if it is texts, one per line.

    It is what the run's recipe says, if the file has the ending of the recipe's files or of its format; else
    what the ending says.

    Args:
        run: a run folder, or an exported model, which has no recipe.
        file: to annotate.
        wanted: a format, or a mapping in YAML such as ``{format: conllu, column: xpos}``.
        source: of which of several data sets the file is.

    Raises:
        UserError: if the format needs more than its name, or has nothing that the model predicts.
    """
    needed = _needed(run)
    if wanted is not None:
        try:
            content = parse_yaml(wanted)
        except yaml.YAMLError as error:
            raise UserError(f"--format {short(wanted)}{yaml_error(error)}") from None
        content = content if isinstance(content, dict) else {"format": content}
        return _parse(content, needed, file, "--format")
    ending = suffix(file)
    by_ending = ENDINGS.get(ending)
    if not set(needed) & set(PREDICTED):
        if by_ending is not None:
            raise UserError(
                f"{file}: the model of {run} writes text, expected one that predicts tags, labels or answers "
                f"for a file of format {by_ending}"
            )
        return None
    if ending == ".tsv" and "tokens" not in needed:
        by_ending = "csv"
    fitting = [
        _own(recipe)
        for recipe in _recipe_data(run, source)
        if recipe.get("format", "") == by_ending or ending in _endings(recipe)
    ]
    if any(recipe != fitting[0] for recipe in fitting):
        raise UserError(
            f"--source is missing: the run's data sets differ in how {file} would be read, expected one of "
            f"{', '.join(source_names(run))}"
        )
    if fitting:
        return _parse(fitting[0], needed, file, str(run / "recipe.yaml"))
    if by_ending is None:
        return None
    return _parse(
        {"format": by_ending},
        needed,
        file,
        f"{file}: read as {by_ending}, of which --format '{{format: {by_ending}, FIELD: VALUE}}' says more",
    )


def annotate(
    run: Path, file: Path, data: TaggedDataConfig, probabilities: int = 0, source: str | None = None
) -> Iterator[str]:
    """Yield the lines of a file with what the model predicts; all else is as it was.

    Args:
        run: a run folder, or an exported model.
        file: of the format.
        data: how it is read; see :func:`format_of`.
        probabilities: how many of the most likely tags of each token, or classes, to write with theirs.
        source: of which of several data sets the file is.

    Raises:
        UserError: if the model predicts nothing that the file takes, or naming the line that is not of the
            format.
    """
    predictor = load(run, source)
    return data.annotate(file, partial(predictor.annotate, probabilities=probabilities))


def _needed(run: Path) -> tuple[str, ...]:
    """Return the fields of examples that a model's task needs; a tagger's where the folder does not say."""
    recipe = run / "recipe.yaml"
    name: Any = None
    if recipe.is_file():
        task = read_yaml(recipe).get("task", {})
        name = task.get("name", TASKS.default) if isinstance(task, dict) else None
    elif (run / "config.json").is_file():
        with suppress(OSError, ValueError):  # of a damaged one, loading says more
            exported = getattr(read_config(run), "fangyan", None)
            name = exported.get("task") if isinstance(exported, dict) else None
    member = TASKS.members.get(str(name))
    return member.fields if member is not None and issubclass(member, TaskConfig) else ("tokens", "tags")


def _recipe_data(run: Path, source: str | None) -> list[Mapping[str, Any]]:
    """Return what a run's recipe says of its data: of each set, where there are several and none is named."""
    path = run / "recipe.yaml"
    if not path.is_file():
        return []
    data = data_section(path)
    if not isinstance(data.get("sources"), list):
        return [data]
    return [each for name, each in named_sources(data["sources"]) if source in (None, "-", name)]


def _own(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a data set is read, without which files it has."""
    return {
        key: value for key, value in recipe.items() if key not in ("name", "train", "dev", "test", "fold")
    }


def _endings(recipe: Mapping[str, Any]) -> set[str]:
    """Return the endings of a recipe's files, where they can be written."""
    member = FORMATS.members.get(str(recipe.get("format")))
    if (
        member is None
        or not issubclass(member, TaggedDataConfig)
        or member.annotate is TaggedDataConfig.annotate
    ):
        return set()
    named = [recipe.get(split) for split in ("train", "dev", "test")]
    files = [file for files in named for file in (files if isinstance(files, list) else [files])]
    return {suffix(file) for file in files if isinstance(file, str)}


def _parse(content: Mapping[str, Any], needed: tuple[str, ...], file: Path, source: str) -> TaggedDataConfig:
    data: DataConfig = parse_data(with_defaults({**_own(content), "train": str(file)}, needed), source)
    if not isinstance(data, TaggedDataConfig) or not set(needed) <= set(data.provided):
        found = " and ".join(data.provided)
        wanted = " and ".join(name for name in needed if name in PREDICTED) or "what the model writes"
        raise UserError(
            f"{source}: a {data.format} file of {found} has no place for {wanted}, expected conll, conllu, "
            "jsonl or csv"
        )
    return data
