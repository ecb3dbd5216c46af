"""Data sets that show what a model forgets, by scores before and after training: a recipe's ``retain``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fangyan.config import short
from fangyan.data.example import Example
from fangyan.data.formats import parse_other_data
from fangyan.data.formats.sources import Sources
from fangyan.data.splits import DataConfig
from fangyan.errors import UserError

# Of a split's name, before that of the data set.
RETAINED = "retain/"


def parse_retained(sections: Sequence[Mapping[str, Any]]) -> dict[str, DataConfig]:
    """Return the data sets by their names.

    Args:
        sections: each like ``data``, with a name.

    Raises:
        UserError: naming the data set and the field, what was found and what was expected.
    """
    found: dict[str, DataConfig] = {}
    for number, section in enumerate(sections, start=1):
        name = section.get("name", f"data-{number}")
        if not isinstance(name, str) or not name or "/" in name:
            raise UserError(f"retain: name is {short(name)}, expected text without a slash")
        if name in found:
            raise UserError(f"retain: {name} is there twice, expected names that differ")
        own = {key: value for key, value in section.items() if key != "name"}
        found[name] = parse_other_data(own, f"retain: {name}")
        if isinstance(found[name], Sources):
            raise UserError(
                f"retain: {name} is of sources, expected a format of files, and each data set by itself"
            )
    return found


def load_retained(sections: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Sequence[Example]]:
    """Return the examples that each data set is scored on: its test split, or all of train where it has none.

    Raises:
        UserError: for a missing file, a malformed line, or no example.
    """
    found = {}
    for name, data in parse_retained(sections).items():
        try:
            if data.fold is not None or isinstance(data.test, float):
                found[name] = data.load(seed)["test"]
            else:
                splits = data.load_named()
                data.check_named(splits)
                found[name] = splits.get("test", splits["train"])
        except UserError as error:
            raise UserError(f"retain: {name}: {error}") from None
    return found
