"""Files with a tagger's predictions in place of their tags."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from fangyan.config import short
from fangyan.data.compression import suffix
from fangyan.data.formats import parse_data
from fangyan.data.splits import DataConfig, TaggedDataConfig
from fangyan.errors import UserError
from fangyan.inference.load import data_section, load
from fangyan.yaml_text import parse_yaml, yaml_error

# Formats by the ending of a file's name; others are sentences, one per line.
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


def format_of(run: Path, file: Path, wanted: str | None = None) -> TaggedDataConfig | None:
    """Return how a file is read and written, or None if it is sentences, one per line.

    It is what the run's recipe says, if the file has the ending of the recipe's files or of its format; else
    what the ending says.

    Args:
        run: a run folder, or an exported model, which has no recipe.
        file: to annotate.
        wanted: a format, or a mapping in YAML such as ``{format: conllu, column: xpos}``.

    Raises:
        UserError: if the format needs more than its name, or has no tags.
    """
    if wanted is not None:
        try:
            content = parse_yaml(wanted)
        except yaml.YAMLError as error:
            raise UserError(f"--format {short(wanted)}{yaml_error(error)}") from None
        return _parse(content if isinstance(content, dict) else {"format": content}, file, "--format")
    ending, recipe = suffix(file), _recipe_data(run)
    if recipe and "tags" not in parse_data(dict(recipe), str(run / "recipe.yaml")).provided:
        if ending in ENDINGS:
            raise UserError(f"{file}: {run} is no tagger, expected one for a file of tokens and tags")
        return None
    by_ending = ENDINGS.get(ending)
    if recipe and (by_ending == recipe["format"] or ending in _endings(recipe)):
        return _parse(recipe, file, str(run / "recipe.yaml"))
    if by_ending is None:
        return None
    return _parse(
        {"format": by_ending},
        file,
        f"{file}: read as {by_ending}, of which --format '{{format: {by_ending}, FIELD: VALUE}}' says more",
    )


def annotate(run: Path, file: Path, data: TaggedDataConfig, probabilities: int = 0) -> Iterator[str]:
    """Yield the lines of a file with predicted tags; all else is as it was.

    Args:
        run: a run folder, or an exported model.
        file: of the format.
        data: how it is read; see :func:`format_of`.
        probabilities: how many of each token's most likely tags to write with theirs.

    Raises:
        UserError: if the model is no tagger, or naming the line that is not of the format.
    """
    predictor = load(run)
    return data.annotate(file, partial(predictor.annotate, probabilities=probabilities))


def _recipe_data(run: Path) -> Mapping[str, Any] | None:
    path = run / "recipe.yaml"
    if not path.is_file():
        return None
    return data_section(path)


def _endings(recipe: Mapping[str, Any]) -> set[str]:
    """Return the endings of a recipe's files."""
    named = [recipe.get(split) for split in ("train", "dev", "test")]
    files = [file for files in named for file in (files if isinstance(files, list) else [files])]
    return {suffix(file) for file in files if isinstance(file, str)}


def _parse(content: Mapping[str, Any], file: Path, source: str) -> TaggedDataConfig:
    own = {name: value for name, value in content.items() if name not in ("dev", "test")}
    data: DataConfig = parse_data({**own, "train": str(file)}, source)
    if not isinstance(data, TaggedDataConfig) or "tags" not in data.provided:
        found = " and ".join(data.provided)
        raise UserError(
            f"{source}: {found} of a {data.format} file have no tags to be written back; expected conll, "
            "conllu or jsonl with tags"
        )
    return data
