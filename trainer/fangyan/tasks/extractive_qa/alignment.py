"""Which characters of a text its sub-words stand for, whatever a tokenizer says of it.

A tokenizer's offsets are wrong where its normalizer moves characters: diacritics and compatibility forms do
it (huggingface/tokenizers 1663 and 1201). So what each sub-word reads as is compared with the characters that
it is said to stand for, and where another place fits better, that is taken. What remains open is found out
for each answer: :func:`find_span`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

# Characters that may stand for nothing, or for unknown sub-words, between two whose places are known.
_LONGEST_GAP = 64
# Nowhere in the text.
NOWHERE = (-1, -1)

Span = tuple[int, int]


@lru_cache(maxsize=1 << 16)
def reading(text: str) -> str:
    """Return what tokenizers agree on of a text: no case, marks, white space, controls and formats."""
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    if decomposed.isascii() and decomposed.isalnum():
        return decomposed
    # Case folding may bring marks of its own.
    return "".join(c for c in unicodedata.normalize("NFKD", decomposed) if not _says_nothing(c))


def _says_nothing(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) in ("Mn", "Me", "Cc", "Cf")


class Readings:
    """What the sub-words of a tokenizer read as.

    Args:
        backend: the tokenizer.
    """

    def __init__(self, backend: Any):
        self._backend = backend
        model = backend.backend_tokenizer.model
        self._continues = getattr(model, "continuing_subword_prefix", None) or ""
        self._known: dict[int, str | None] = {}

    def __call__(self, subword: int) -> str | None:
        """Return a sub-word's reading: "" of a space; None where it is unknown, or part of a character."""
        if subword not in self._known:
            self._known[subword] = self._read(subword)
        return self._known[subword]

    def _read(self, subword: int) -> str | None:
        if subword in self._backend.all_special_ids:
            return None
        text = self._backend.decode([subword])
        if "\ufffd" in text:
            return None
        return reading(text.removeprefix(self._continues) if len(text) > len(self._continues) else text)


def align(
    text: str, offsets: Sequence[Span], readings: Sequence[str | None]
) -> tuple[list[Span], list[str | None]]:
    """Return the characters that each sub-word stands for, and its reading where that can be trusted.

    Args:
        text: that was tokenized.
        offsets: first and last character of each sub-word, as the tokenizer has them.
        readings: of each; see :class:`Readings`.

    Returns:
        The characters, :data:`NOWHERE` for a sub-word that is a space or mark; and the readings, None for one
        in whose place the text has something else (ALBERT's normalizer writes other quotation marks), between
        two that read right.
    """
    found = [
        NOWHERE if read == "" else _trimmed(text, span) for read, span in zip(readings, offsets, strict=True)
    ]
    if not text.isascii():
        found = _stretched(text, found, readings)
    right = _right(text, found, readings)
    if not all(right):
        other = _walk(text, readings)
        found = max(found, other, key=lambda spans: sum(_right(text, spans, readings)))
        right = _right(text, found, readings)
    own = [i for i, read in enumerate(readings) if read != ""]
    trusted = list(readings)
    for before, i, after in zip(own, own[1:], own[2:], strict=False):
        if right[before] and right[after] and not right[i]:
            trusted[i] = None
            # All that is between: what a replacement stands for is counted wrong too.
            found[i] = _trimmed(text, (found[before][1], found[after][0]))
    return found, trusted


def _right(text: str, spans: Sequence[Span], readings: Sequence[str | None]) -> list[bool]:
    """Return whether each sub-word reads as the characters that it is said to stand for, if it says so."""
    pairs = zip(spans, readings, strict=True)
    return [not read or reading(text[start:end]) == read for (start, end), read in pairs]


def _trimmed(text: str, span: Span) -> Span:
    start, end = span
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return (start, end) if start < end else NOWHERE


def _stretched(text: str, spans: Sequence[Span], readings: Sequence[str | None]) -> list[Span]:
    """Add to sub-words the characters behind them that no other stands for: marks and jamo that NFC composes.

    It counts the first of what it composes alone.
    """
    found = list(spans)
    following = len(text)
    for i in reversed(range(len(spans))):
        start, end = spans[i]
        gap = text[end:following]
        if spans[i] != NOWHERE and gap and unicodedata.category(gap[0])[0] in "LM":
            further = end + len(gap.split(maxsplit=1)[0])
            if readings[i] in (None, reading(text[start:further])):
                found[i] = (start, further)
        following = start if spans[i] != NOWHERE else following
    return found


def _walk(text: str, readings: Sequence[str | None]) -> list[Span]:
    """Place sub-words one after the other where the text reads as they do.

    What lies between two of them is of the unknown ones there.
    """
    owners = [i for i, character in enumerate(text) for _ in reading(character)]
    whole = "".join(map(reading, text))
    found = [NOWHERE] * len(readings)
    place = 0
    unknown: list[int] = []
    for i, read in enumerate(readings):
        if read is None:
            unknown.append(i)
        if not read:
            continue
        at = whole.find(read, place, place + _LONGEST_GAP + len(read))
        if at < 0:
            unknown.append(i)
            continue
        if at > place:
            for other in unknown:
                found[other] = (owners[place], owners[at - 1] + 1)
        place, unknown = at + len(read), []
        found[i] = (owners[at], owners[place - 1] + 1)
    return found


def find_span(
    text: str, spans: Sequence[Span], readings: Sequence[str | None], start: int, end: int
) -> Span | None:
    """Return the first and last sub-word of characters ``start`` to ``end``; None if they do not cover them.

    Args:
        text: that was tokenized.
        spans: of each sub-word; see :func:`align`.
        readings: of each; see :class:`Readings`.
        start: of the characters.
        end: of them, exclusive.
    """
    start, end = _trimmed(text, (start, end))
    inside = [i for i, (first, last) in enumerate(spans) if first < end and last > start]
    if not inside:
        return None
    first, last = inside[0], inside[-1]
    outside = text[start : max(start, spans[first][0])] + text[min(end, spans[last][1]) : end]
    if reading(outside):
        return None
    read = [readings[i] for i in range(first, last + 1)]
    # Unknown sub-words say nothing of their characters: their offsets are all there is.
    if None not in read and reading(text[start:end]) not in "".join(filter(None, read)):
        return None
    return first, last


def whole_characters(text: str, start: int, end: int) -> Span:
    """Return a span that tears no mark off its letter."""
    while 0 < start < end and unicodedata.category(text[start]).startswith("M"):
        start -= 1
    while start < end < len(text) and unicodedata.category(text[end]).startswith("M"):
        end += 1
    return start, end
