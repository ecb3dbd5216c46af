"""Guesses about files of named values: JSON lines, tables with a header, Parquet; SQuAD's and CHAT's own."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from fangyan.data.compression import suffix
from fangyan.data.formats.datasets import read_records
from fangyan.data.json_text import NotJson, parse_json
from fangyan.errors import UserError
from fangyan.first_run.reading import Head, Reading
from fangyan.first_run.values import record_readings

# Records that are looked at.
_RECORDS = 1000
_SEPARATORS = ",\t;|"
# Share of the rows that need as many cells as the header.
_MOST = 0.98
_JSON = re.compile(r"\s*[{\[]")


def json_readings(head: Head) -> list[Reading]:
    """Return how JSON lines, or SQuAD's JSON, may be read.

    Raises:
        UserError: if it is JSON that no format reads, or no line of it is an object.
    """
    lines = [(number, line) for number, line in enumerate(head.lines, start=1) if line.strip()]
    first = lines[0][1]
    if not _JSON.match(first) and suffix(head.path) not in (".jsonl", ".ndjson"):
        return []
    records: list[dict[str, Any]] = []
    for number, line in islice(lines, _RECORDS):
        try:
            record = parse_json(line, f"{head.path}:{number}")
        except NotJson:
            if records:
                raise
            return _whole(head)
        if not isinstance(record, dict) or isinstance(record.get("data"), list):
            return _whole(head)
        records.append(record)
    return record_readings(head.path, records, {"format": "jsonl"}, "each line is a JSON object")


def _whole(head: Head) -> list[Reading]:
    """Return SQuAD's JSON as such; refuse other JSON that is not one object per line."""
    text = "\n".join(head.lines)
    if '"paragraphs"' in text and '"qas"' in text:
        reasons = ["one JSON object of articles, paragraphs and questions, as SQuAD has them"]
        return [Reading("extractive_qa", {"format": "squad"}, 0.98, reasons)]
    if not re.match(r'\s*(\{\s*"|\[\s*\{)', text):  # text that begins with a bracket
        return []
    raise UserError(
        f"{head.path}: JSON, but not one object per line; expected JSON lines: "
        f"jq -c '.[]' {head.path} > NEW.jsonl makes them of a list"
    )


def datasets_readings(path: Path) -> list[Reading]:
    """Return how a Parquet file, or a folder of ``datasets``, may be read."""
    records = list(islice(read_records(path), _RECORDS))
    if not records:
        raise UserError(f"{path}: empty, expected examples to learn from")
    shape = "a folder of datasets" if path.is_dir() else "a Parquet file"
    return record_readings(path, records, {"format": "datasets"}, shape)


def csv_readings(head: Head) -> list[Reading]:
    """Return how a table with a header may be read.

    Raises:
        UserError: if it is a table without a header.
    """
    lines = head.lines if head.is_whole else head.lines[:-1]
    usual = "\t" if suffix(head.path) in (".tsv", ".tab") else ","
    for separator in [usual, *(other for other in _SEPARATORS if other != usual)]:
        for quoted in (True, False):
            rows = _rows(lines, separator, quoted, head.is_whole)
            if rows is None:
                continue
            found: dict[str, Any] = {"format": "csv"}
            if separator != usual:
                found["separator"] = separator
            if not quoted:
                found["quoted"] = False
            name = {"\t": "a tab", ",": "a comma", ";": "a semicolon", "|": "a bar"}[separator]
            _check_header(head, rows)
            records = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
            return record_readings(head.path, records, found, f"a table with a header, {name} between cells")
    if suffix(head.path) in (".csv", ".tsv", ".tab"):
        raise UserError(
            f"{head.path}: no table: rows differ in how many cells they have; expected as many as in the "
            "header, and quotation marks around cells that hold a separator"
        )
    return []


def _rows(lines: Sequence[str], separator: str, quoted: bool, is_whole: bool) -> list[list[str]] | None:
    """Return the rows of a table; None where lines are none."""
    if lines[0].count(separator) == 0:
        return None
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    ended = (f"{line}\n" for line in lines)
    rows: list[list[str]] = []
    try:
        for row in islice(csv.reader(ended, delimiter=separator, quoting=quoting, strict=True), _RECORDS):
            rows += [row] if row else []
    except csv.Error:
        if is_whole or len(rows) < _RECORDS // 10:  # otherwise the last row may be cut off
            return None
    fitting = [row for row in rows if len(row) == len(rows[0])]
    return fitting if len(fitting) >= max(2, _MOST * len(rows)) and len(rows[0]) > 1 else None


def _check_header(head: Head, rows: Sequence[Sequence[str]]) -> None:
    names = [name.strip() for name in rows[0]]
    is_named = all(names) and len(set(names)) == len(names) and max(map(len, names)) <= 40
    is_data = any(_is_number(name) or name in {row[i] for row in rows[1:]} for i, name in enumerate(names))
    if not is_named or is_data:
        raise UserError(
            f"{head.path}:1: no header ({', '.join(names)[:60]}), expected a first line with the columns' "
            "names, such as text and label"
        )


def _is_number(name: str) -> bool:
    return re.fullmatch(r"-?\d+([.,]\d+)?", name) is not None


def chat_readings(head: Head) -> list[Reading]:
    """Return how transcripts of TalkBank may be read."""
    speakers = [line for line in head.lines if re.match(r"\*\w+:\t", line)]
    tiers = [line for line in head.lines if line.startswith("%mor:\t")]
    if not speakers or not any(line.startswith("@Begin") for line in head.lines[:10]):
        return []
    if not tiers:
        raise UserError(f"{head.path}: a CHAT transcript without %mor: lines, expected some: they have tags")
    reasons = ["a CHAT transcript, whose %mor: lines have tags"]
    return [Reading("token_classification", {"format": "chat", "tier": "mor"}, 0.95, reasons)]
