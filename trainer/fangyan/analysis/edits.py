"""Other words in the texts of examples; what is right for them stays."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fangyan.data.example import DATASET, Example
from fangyan.data.masking import UNSPACED
from fangyan.tasks.task import TokenUnit

# From pieces of a text to as many.
Change = Callable[[Sequence[str]], list[str]]

# All of a text; what stands between white space; and the same, but pairs of characters of scripts without
# spaces, as most words there are.
WHOLE = re.compile(r".+", re.DOTALL)
RUNS = re.compile(r"\S+")
WORDS = re.compile(rf"[{UNSPACED}]{{1,2}}|[^\s{UNSPACED}]+")


def edited(
    example: Example, change: Change, unit: TokenUnit = "words", pieces: re.Pattern[str] = RUNS
) -> Example:
    """Return an example with other tokens; or another text, texts of a pair, or question.

    The name of a data set before a text, and the context of a question, whose answers are places in it, stay.

    Args:
        example: with its tags, label or answers, which stay.
        change: of its tokens, or of the pieces of its text.
        unit: what tokens are. Where they are characters, one that would become several stays.
        pieces: finds what of a text is changed.
    """
    fields: dict[str, Any] = dict(example.fields)
    if "tokens" in fields:
        before = fields["tokens"]
        after = change(before)
        if unit == "characters":
            kept = (new if len(clusters(new)) == 1 else old for old, new in zip(before, after, strict=True))
            after = list(kept)
        fields["tokens"] = tuple(after)
        return Example(fields, example.source, example.group)
    for name in ("question",) if "question" in fields else ("text", "pair"):
        if name in fields:
            told = f"{fields[DATASET]}: " if DATASET in fields else ""
            head = told if told and fields[name].startswith(told) else ""
            fields[name] = head + _changed(fields[name][len(head) :], change, pieces)
    return Example(fields, example.source, example.group)


def _changed(text: str, change: Change, pieces: re.Pattern[str]) -> str:
    found = list(pieces.finditer(text))
    after = change([match[0] for match in found])
    parts, end = [], 0
    for match, new in zip(found, after, strict=True):
        parts += [text[end : match.start()], new]
        end = match.end()
    return "".join([*parts, text[end:]])


def replaced(tokens: Sequence[str], runs: Mapping[tuple[str, ...], tuple[str, ...]]) -> list[str]:
    """Return tokens with other runs of them, of the same lengths, the longest first."""
    found = list(tokens)
    sizes = sorted({len(run) for run in runs}, reverse=True)
    start = 0
    while start < len(found):
        size = next((size for size in sizes if tuple(found[start : start + size]) in runs), 0)
        if size:
            found[start : start + size] = runs[tuple(found[start : start + size])]
        start += max(size, 1)
    return found


def is_changed(before: Example, after: Example) -> bool:
    """Return whether an edit has changed anything."""
    return before.fields != after.fields


def clusters(word: str) -> list[str]:
    """Return the characters of a word as they are seen: each with the marks that follow it."""
    found: list[str] = []
    for character in word:
        if found and unicodedata.category(character).startswith("M"):
            found[-1] += character
        else:
            found.append(character)
    return found
