"""One example of a data set, whatever its task, and the lines of a file that it is read from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fangyan.errors import UserError


@dataclass(frozen=True, slots=True)
class Example:
    """What a format reads and a task learns from.

    Attributes:
        fields: by name: ``tokens`` and ``tags`` (tuples of strings of one length), or ``text``. A format
            says which it provides, a task which it needs.
        source: ``file:line`` where the example begins, for error messages.
        group: examples of one group are never torn apart by a split: a conversation, a document, all copies
            of one sentence.
    """

    fields: Mapping[str, Any]
    source: str
    group: str


@dataclass(frozen=True, slots=True)
class Annotation:
    """What a tagger predicts for one example.

    Attributes:
        tags: one per token, in the scheme of the file.
        probabilities: per token the most likely tags with their probabilities, most likely first; or None.
    """

    tags: tuple[str, ...]
    probabilities: tuple[tuple[tuple[str, float], ...], ...] | None = None


# By name: train, dev and, where there is one, test. Examples may be in a file: no list to change.
Splits = dict[str, Sequence[Example]]


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield a file's numbered lines; see :func:`read_stream`.

    Raises:
        UserError: if there is no such file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with path.open("rb") as file:
        yield from read_stream(file, str(path))


def read_stream(stream: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Yield numbered lines of UTF-8 without their line ends; a byte order mark is dropped.

    Args:
        stream: raw lines.
        name: of the stream, for error messages.

    Raises:
        UserError: naming the line and byte that are not UTF-8.
    """
    for number, raw in enumerate(stream, start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name}:{number}: byte {error.start + 1} is not UTF-8, expected UTF-8 text"
            ) from None
        yield number, line.rstrip("\r\n")
