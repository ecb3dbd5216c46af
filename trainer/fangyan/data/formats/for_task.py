"""Sections like a recipe's ``data``, as a task needs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fangyan.data.formats import FORMATS, with_defaults
from fangyan.data.splits import DataConfig


def filled(section: Any, needed: tuple[str, ...]) -> Any:
    """Return a section with what its formats' fields are for a task, where it does not say.

    So are the sections within it: of several data sets, and of what is replayed.

    Args:
        section: of a recipe, not checked yet.
        needed: fields of examples.
    """
    if not isinstance(section, Mapping):
        return section
    found = with_defaults(section, needed)
    if isinstance(section.get("sources"), list):  # several data sets
        found = {
            "format": "sources",
            **found,
            "sources": [filled(each, needed) for each in section["sources"]],
        }
    replay = section.get("replay")
    if isinstance(replay, Mapping) and isinstance(replay.get("source"), Mapping):
        found["replay"] = {**replay, "source": filled(replay["source"], needed)}
    return found


def check_fields(data: DataConfig, place: str, task: str, needed: Sequence[str]) -> None:
    """Refuse data whose examples do not have what a task needs.

    Args:
        data: that is checked.
        place: of its section, for the message.
        task: by its name.
        needed: fields of examples.

    Raises:
        ValueError: saying what would do.
    """
    missing = [field for field in needed if field not in data.provided]
    if missing and set(missing) <= set(data.fields):  # by other columns
        raise ValueError(
            f"{place}.{data.chooser} makes {' and '.join(data.provided)} of a {data.format} "
            f"file, but {task} needs {' and '.join(needed)}; expected {data.choice(needed)}"
        )
    if missing:
        fitting = [
            name
            for name, member in FORMATS.members.items()
            if issubclass(member, DataConfig) and set(needed) <= set(member.fields)
        ]
        raise ValueError(
            f"{place}.format is {data.format}, which has no {' and '.join(missing)}; "
            f"expected {', '.join(fitting) or 'a format that has'} for {task}"
        )


def check_alike(data: DataConfig, place: str, own: DataConfig, needed: Sequence[str]) -> None:
    """Refuse data that a model would read in another way than the run's own.

    Args:
        data: that is checked.
        place: of its section, for the message.
        own: data of the run.
        needed: fields of examples.

    Raises:
        ValueError: saying what would do.
    """
    if "tokens" in needed and data.token_unit != own.token_unit:
        raise ValueError(
            f"{place}.tokens is {data.token_unit}, but data.tokens {own.token_unit}; expected the same"
        )
    if ("pair" in data.provided) != ("pair" in own.provided):
        numbers = ["one text" if "pair" not in each.provided else "pairs of texts" for each in (data, own)]
        raise ValueError(f"{place} has {numbers[0]}, but data {numbers[1]}; expected the same")
