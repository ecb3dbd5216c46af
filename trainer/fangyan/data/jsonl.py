"""JSON lines: an object a line, with the lists ``tokens`` and ``tags``."""

from __future__ import annotations

import json
from pathlib import Path

from fangyan.data.examples import Example, read_lines
from fangyan.errors import UserError


def read_jsonl(path: Path) -> list[Example]:
    """Raises:
    UserError: naming file and line, for a line that is not such an object.
    """
    examples = []
    for number, line in read_lines(path):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{place}: not JSON: {error.msg} at column {error.colno}") from None
        if not isinstance(item, dict):
            raise UserError(f"{place}: expected an object with tokens and tags, found {type(item).__name__}")
        tokens, tags = (_strings(item, key, place) for key in ("tokens", "tags"))
        if len(tokens) != len(tags):
            raise UserError(f"{place}: {len(tokens)} tokens but {len(tags)} tags, expected a tag a token")
        if tokens:
            examples.append(Example(tuple(tokens), tuple(tags), place, " ".join(tokens)))
    return examples


def _strings(item: dict[str, object], key: str, place: str) -> list[str]:
    value = item.get(key)
    if not isinstance(value, list) or not all(isinstance(part, str) and part for part in value):
        raise UserError(f"{place}: {key} is {str(value)[:60]!r}, expected a list of non-empty strings")
    return value
