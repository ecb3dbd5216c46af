"""An example: one sentence as a list of tokens, each with its tag."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fangyan.errors import UserError


@dataclass(frozen=True, slots=True)
class Example:
    """Tokens and tags of one sentence, and the place they were read from.

    Attributes:
        tokens: the units that carry a tag: characters, or words.
        tags: one tag a token; None for raw text that is to be tagged.
        source: ``file:line`` of the first token, for error messages.
        group: what must not be torn apart by a split: a conversation, a document, a sentence.
    """

    tokens: tuple[str, ...]
    tags: tuple[str, ...] | None
    source: str
    group: str


def words_to_characters(words: list[str], tags: list[str]) -> tuple[list[str], list[str]]:
    """Segmentation and tagging as one task: ``B-`` on a word's first character, ``I-`` on others."""
    characters: list[str] = []
    joint: list[str] = []
    for word, tag in zip(words, tags, strict=True):
        characters.extend(word)
        joint.extend([f"B-{tag}"] + [f"I-{tag}"] * (len(word) - 1))
    return characters, joint


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """As :func:`read_stream`, for a file."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with path.open("rb") as file:
        yield from read_stream(file, str(path))


def read_stream(stream: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Numbered lines of UTF-8 without their line ends; a byte order mark is dropped."""
    for number, raw in enumerate(stream, start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name}:{number}: byte {error.start + 1} is not UTF-8, expected UTF-8 text"
            ) from None
        yield number, line.rstrip("\r\n")
