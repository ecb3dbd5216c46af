"""One example of a data set, whatever its task, and the lines of a file that it is read from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from fangyan.data.compression import open_file
from fangyan.errors import UserError
from fangyan.suggestions import file_like

BOM = "\ufeff"
# The field that names an example's data set, where there are several.
DATASET = "dataset"
# The field with what stands before an example's tokens, unlabelled.
PREFIX = "prefix"
# Bytes of a line: a compressed file of a few MB could hold one that fills the memory.
LONGEST_LINE = 1 << 27


@dataclass(frozen=True, slots=True)
class Example:
    """What a format reads and a task learns from.

    Attributes:
        fields: by name: ``tokens`` and ``tags`` (tuples of strings of one length), or ``text``. A format
            says which it provides, a task which it needs. Tokens may come with ``spaces``, a tuple of bools
            of their length: whether white space follows the token. ``answers`` to a question are a tuple of
            objects with ``text`` and ``start``, counted in characters of its ``context``.
        source: ``file:line`` where the example begins, for error messages.
        group: examples of one group are never torn apart by a split: a conversation, a document, all copies
            of one sentence.
    """

    fields: Mapping[str, Any]
    source: str
    group: str


@dataclass(frozen=True, slots=True)
class Annotation:
    """What a model predicts for one example of a file.

    Attributes:
        tags: of a tagger, one per token, in the scheme of the file.
        probabilities: per token the most likely tags with their probabilities, most likely first; or None.
        labels: the tags in IOB2, where they are of spans.
        values: of other models, by the name of the field, such as ``{"label": "question"}``.
    """

    tags: tuple[str, ...] = ()
    probabilities: tuple[tuple[tuple[str, float], ...], ...] | None = None
    labels: tuple[str, ...] | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


# By name: train, dev and, where there is one, test. Examples may be in a file: no list to change.
Splits = dict[str, Sequence[Example]]


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield a file's numbered lines; see :func:`read_stream`. It may be compressed: ``.gz`` or ``.zst``.

    Raises:
        UserError: if there is no such file.
    """
    return ((number, bare(raw, str(path), number)) for number, raw in read_raw_lines(path))


def read_raw_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield a file's numbered lines as they are, with line ends and byte order mark; see :func:`bare`.

    Raises:
        UserError: if there is no such file, or naming the line that is not UTF-8 text.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder, expected files, such as {path}/*")
    if not path.is_file():
        raise UserError(f"{path}: no such file{file_like(path)}")
    with open_file(path) as file:
        yield from _decode(file, str(path))


def read_stream(stream: IO[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Yield numbered lines of UTF-8 without their line ends; a byte order mark is dropped.

    Args:
        stream: of raw lines.
        name: of the stream, for error messages.

    Raises:
        UserError: naming the line and byte that are not UTF-8, or the line that ends as on old Macs.
    """
    return ((number, bare(raw, name, number)) for number, raw in _decode(stream, name))


def bare(raw: str, name: str, number: int) -> str:
    """Return a raw line without its line end and, of the first line, the byte order mark.

    Raises:
        UserError: if it holds a carriage return that ends no line: the line ends of old Macs.
    """
    line = raw.rstrip("\r\n")
    if number == 1:
        line = line.removeprefix(BOM)
    if "\r" in line:
        raise UserError(
            f"{name}:{number}: a carriage return within the line, expected lines that end in LF or CR LF "
            "(old Macs end theirs in CR alone)"
        )
    return line


def _decode(stream: IO[bytes], name: str) -> Iterator[tuple[int, str]]:
    for number, raw in enumerate(iter(lambda: stream.readline(LONGEST_LINE + 1), b""), start=1):
        if len(raw) > LONGEST_LINE:
            raise UserError(f"{name}:{number}: more than {LONGEST_LINE:,} bytes in a line, expected fewer")
        if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise UserError(f"{name}:1: text in UTF-16, expected UTF-8")
        if b"\0" in raw:
            raise UserError(
                f"{name}:{number}: byte {raw.index(0) + 1} is NUL, expected UTF-8 text (this may be UTF-16)"
            )
        try:
            yield number, raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name}:{number}: byte {error.start + 1} is not UTF-8, expected UTF-8 text"
            ) from None
