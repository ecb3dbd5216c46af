"""What the guesses about a file share: its first lines, and the ways in which it may be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fangyan.data.example import bare, read_raw_lines
from fangyan.errors import UserError

# Characters of a file that a guess looks at.
_LOOKED_AT = 1_000_000
# What other files begin with, and what to do with them.
_BINARY = {
    b"PK\x03\x04": "a ZIP archive, as Excel and Word write them; expected text: save a table as CSV in UTF-8",
    b"\xd0\xcf\x11\xe0": "a file of older Excel or Word; expected text: save a table as CSV in UTF-8",
    b"%PDF": "a PDF; expected text in UTF-8",
    b"SQLite format": "a database; expected text: export a table as CSV in UTF-8",
}
# Names and values that a reason quotes.
_QUOTED = 5


@dataclass(frozen=True)
class Reading:
    """One way in which a file may be read.

    Attributes:
        task: of the recipe.
        format: fields of the recipe's ``data`` that say the format.
        sureness: that the user means this, from 0 to 1.
        reasons: for it, each a clause.
        question: what tells it from the other readings of the file; "" where there is none.
        answer: to the question, by which this one is meant.
        options: other fields of the recipe's ``task``.
    """

    task: str
    format: dict[str, Any]
    sureness: float
    reasons: list[str]
    question: str = ""
    answer: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Head:
    """The first lines of a file.

    Attributes:
        path: of the file.
        lines: without line ends.
        is_whole: whether these are all.
    """

    path: Path
    lines: list[str]
    is_whole: bool


def read_head(path: Path) -> Head:
    """Return the first lines of a text file.

    Raises:
        UserError: if there is no such file, it is empty, or it is no UTF-8.
    """
    if path.is_file():
        with path.open("rb") as file:
            begin = file.read(16)
        for magic, found in _BINARY.items():
            if begin.startswith(magic):
                raise UserError(f"{path}: {found}")
    lines: list[str] = []
    count = 0
    try:
        for number, raw in read_raw_lines(path):
            if count >= _LOOKED_AT:
                return Head(path, lines, False)
            lines.append(bare(raw, str(path), number))
            count += len(raw)
    except UserError as error:
        if "not UTF-8" in str(error):
            raise UserError(f"{error}; iconv -f ENCODING -t UTF-8 {path} > NEW converts it") from None
        raise
    if not any(line.strip() for line in lines):
        raise UserError(f"{path}: empty, expected examples to learn from")
    return Head(path, lines, True)


def quoted(values: Iterable[str]) -> str:
    """Return the most frequent of some values, for a reason."""
    common = [value for value, _ in Counter(values).most_common(_QUOTED + 1)]
    shown = ", ".join(value[:30] for value in common[:_QUOTED])
    return f"{shown}, …" if len(common) > _QUOTED else shown
