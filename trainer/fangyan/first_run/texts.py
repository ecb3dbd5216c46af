"""Guesses about files of raw text."""

from __future__ import annotations

import re
from typing import Any

from fangyan.errors import UserError
from fangyan.first_run.reading import Head, Reading

_QUESTION = "What is a model to learn from raw text?"
# Characters of a line above which it is no sentence.
_LONG = 2000
# Lines that are looked at for words with tags.
_LINES = 200
_SLASHED = re.compile(r"[^/]+/[^/]+")


def text_readings(head: Head) -> list[Reading]:
    """Return how raw text may be read: to go on writing it, or to fill in words.

    Raises:
        UserError: if its words have tags behind a slash.
    """
    lines = [line for line in head.lines if line.strip()]
    words = [word for line in lines[:_LINES] for word in line.split()]
    tagged = [word for word in words if _SLASHED.fullmatch(word)]
    tags = {word.rpartition("/")[2] for word in tagged}
    if len(tagged) > 0.9 * len(words) and 2 * len(tags) < len(tagged):
        raise UserError(
            f"{head.path}: words with a tag behind a slash ({tagged[0][:40]}), which no format reads; "
            "expected a word and its tag per line, and a blank line between sentences"
        )
    mean = sum(map(len, lines)) / len(lines)
    reasons = [f"its lines have no columns or keys; {mean:.0f} characters each on average"]
    if mean > _LONG:
        reasons.append("each line is one document")
    return raw_text({"format": "text"}, reasons)


def raw_text(format: dict[str, Any], reasons: list[str]) -> list[Reading]:
    """Return how texts without labels may be read.

    Args:
        format: fields of the recipe's ``data``.
        reasons: for it.
    """
    ways = {
        "causal_lm": "to write on: a causal model, such as Qwen3",
        "masked_lm": "to fill in words: an encoder, such as BERT, before it learns to tag or classify",
    }
    return [
        Reading(task, format, 0.6 - 0.1 * place, reasons, _QUESTION, answer)
        for place, (task, answer) in enumerate(ways.items())
    ]
