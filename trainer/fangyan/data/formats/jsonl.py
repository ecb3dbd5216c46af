"""JSON lines: one object per line, with tokens and tags, or a text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from typing_extensions import override

from fangyan.data.annotated import Annotator, Block, annotate_blocks, examples_of
from fangyan.data.example import Annotation, Example, bare, read_lines, read_raw_lines
from fangyan.data.formats.conll import cut_end
from fangyan.data.formats.records import RecordsConfig, named_values
from fangyan.data.json_text import parse_json
from fangyan.errors import UserError

_COLON = re.compile(r"\s*:\s*")


class Jsonl(RecordsConfig):
    """One JSON object per line: tokens and tags, text and labelled spans, or text; other keys are ignored.

    Tokens may have ``spaces``: whether white space follows each.
    """

    format: Literal["jsonl"] = "jsonl"

    @override
    def read(self, path: Path) -> Iterator[Example]:
        """Yield the objects of a file; see :class:`DataConfig`."""
        return examples_of(self.blocks(path, True))

    @override
    def metadata(self, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield the keys of each object; see :class:`DataConfig`."""
        for number, line in read_lines(path):
            if line.strip():
                source = f"{path}:{number}"
                yield source, named_values(_object(line, source))

    @override
    def example(self, record: Mapping[str, Any], source: str, tagged: bool = True) -> Example | None:
        """Return an object's example, with the ``spaces`` of its tokens if it has them."""
        example = super().example(record, source, tagged)
        if example is None or "spaces" not in record or self.has_spans(record):
            return example
        tokens = example.fields.get("tokens")
        if tokens is None:  # a key of no meaning for us
            return example
        spaces = record["spaces"]
        if not isinstance(spaces, list) or [type(space) for space in spaces] != [bool] * len(tokens):
            raise UserError(
                f"{source}: spaces is {str(spaces)[:60]!r}, expected true or false for each of "
                f"{len(tokens)} tokens: whether white space follows"
            )
        return replace(example, fields={**example.fields, "spaces": tuple(spaces)})

    @override
    def without_labels(self, example: Example) -> dict[str, Any]:
        """Return an object of its own without labels; see :class:`RecordsConfig`."""
        record = super().without_labels(example)
        if "spaces" in example.fields and self.column("tokens") in record:
            record["spaces"] = list(example.fields["spaces"])
        return record

    @override
    def annotate(self, path: Path, annotations: Annotator) -> Iterator[str]:
        """Yield the lines of a file with what is predicted; see :class:`TaggedDataConfig`.

        Probabilities are a key of their own: per token, or of the text, a list of tags or classes with
        theirs.
        """
        return annotate_blocks(self.blocks(path, False), annotations, self._write)

    @override
    def blank(self, example: Example, path: Path) -> str:
        """Return an object with tokens, or with a text and its pair."""
        return json.dumps(self.without_labels(example), ensure_ascii=False) + "\n"

    @override
    def blocks(self, path: Path, labelled: bool) -> Iterator[Block]:
        """Yield the lines of a file; see :class:`TaggedDataConfig`."""
        for number, raw in read_raw_lines(path):
            line, source = bare(raw, str(path), number), f"{path}:{number}"
            yield Block(
                [raw], self.example(_object(line, source), source, labelled) if line.strip() else None
            )

    def _write(self, block: Block, annotation: Annotation) -> Iterator[str]:
        assert block.example is not None
        (raw,) = block.lines
        line, end = cut_end(raw)
        record = json.loads(line.removeprefix("\ufeff"))
        for key, value in self.predicted(record, annotation, block.example).items():
            line = _put(line, key, value)
        yield line + end


def _object(line: str, source: str) -> dict[str, Any]:
    item = parse_json(line, source)
    if not isinstance(item, dict):
        raise UserError(f"{source}: expected an object with tokens and tags, found {type(item).__name__}")
    return item


def _put(line: str, key: str, value: Any) -> str:
    """Return an object's line with another value for a key, which is added where it has none."""
    content = json.dumps(value, ensure_ascii=False)
    places = {name: (start, end) for name, start, end in _values(line)}
    if key in places:
        start, end = places[key]
        return line[:start] + content + line[end:]
    close = line.rindex("}")
    return f"{line[:close].rstrip()}, {json.dumps(key, ensure_ascii=False)}: {content}{line[close:]}"


def _values(line: str) -> Iterator[tuple[str, int, int]]:
    """Yield every key of an object's line, and where its value begins and ends."""
    decoder = json.JSONDecoder()
    place = line.index("{")
    while True:
        place = line.find('"', place)
        if place < 0:  # behind the last value
            return
        key, place = decoder.raw_decode(line, place)
        colon = _COLON.match(line, place)
        assert colon is not None
        start = colon.end()
        _, place = decoder.raw_decode(line, start)
        yield key, start, place
