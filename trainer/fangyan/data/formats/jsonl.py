"""JSON lines: one object per line, with the lists ``tokens`` and ``tags``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from typing_extensions import override

from fangyan.data.example import Example, read_lines
from fangyan.data.splits import TaggedDataConfig
from fangyan.errors import UserError


class Jsonl(TaggedDataConfig):
    """One JSON object per line, with lists ``tokens`` and ``tags`` of one length; other keys are ignored."""

    format: Literal["jsonl"] = "jsonl"

    @override
    def read(self, path: Path) -> Iterator[Example]:
        """Yield the objects of a file; see :class:`DataConfig`."""
        for number, line in read_lines(path):
            if not line.strip():
                continue
            source = f"{path}:{number}"
            item = _object(line, source)
            tokens, tags = (_strings(item, key, source) for key in ("tokens", "tags"))
            if len(tokens) != len(tags):
                raise UserError(f"{source}: {len(tokens)} tokens but {len(tags)} tags, expected as many")
            if tokens:
                yield Example({"tokens": tuple(tokens), "tags": tuple(tags)}, source, " ".join(tokens))


def _object(line: str, source: str) -> dict[str, object]:
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{source}: not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(item, dict):
        raise UserError(f"{source}: expected an object with tokens and tags, found {type(item).__name__}")
    return item


def _strings(item: dict[str, object], key: str, source: str) -> list[str]:
    value = item.get(key)
    if not isinstance(value, list) or not all(isinstance(part, str) and part for part in value):
        raise UserError(f"{source}: {key} is {str(value)[:60]!r}, expected a list of non-empty strings")
    return value
