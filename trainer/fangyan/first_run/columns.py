"""Guesses about files of a token per line: CoNLL-U, and CoNLL in any columns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from fangyan.data.compression import suffix
from fangyan.data.formats.conll import is_blank, split
from fangyan.data.formats.conllu import COLUMNS, EMPTY
from fangyan.errors import UserError
from fangyan.first_run.reading import Head, Reading, quoted

# Rows that are looked at, and the share of them that a file's rows have to be like.
_ROWS, _MOST = 20_000, 0.9
# Most lines of a file that may be one sentence.
_ONE_SENTENCE = 200
# Tags with a prefix that says where in an entity or word a token is.
_PREFIXED = re.compile(r"[BIESLUMO]|[BIESLUM][-_:/|].+|.+[-_:/|][BIESLUM]")
_NUMBER = re.compile(r"-?\d+")
_ID = re.compile(r"\d+(-\d+|\.\d+)?")
_WIKIANN = re.compile(r"[a-z][a-z-]{1,11}:(?=.)")
# What the first line of a table calls tokens, and tags.
_TOKENS = {"token", "tokens", "word", "words", "form", "text", "wort", "mot", "palabra"}
_QUESTION = "Which column has the tags to learn?"


def conllu_readings(head: Head) -> list[Reading]:
    """Return how a file of CoNLL-U may be read: by which of its columns."""
    lines = [line for line in head.lines if not is_blank(line) and not line.startswith("#")][:_ROWS]
    rows = [line.split("\t") for line in lines]
    fitting = [row for row in rows if len(row) == len(COLUMNS) and _ID.fullmatch(row[0])]
    if suffix(head.path) != ".conllu" and len(fitting) < _MOST * max(len(rows), 1):
        return []
    words = [dict(zip(COLUMNS, row, strict=True)) for row in fitting if row[0].isdecimal()]
    shape = "its lines have the ten columns of CoNLL-U"
    filled = {
        name: [word[name] for word in words if word[name] != EMPTY]
        for name in ("upos", "xpos", "feats", "deprel")
    }
    found: list[tuple[str, list[str]]] = [
        (name, values) for name, values in filled.items() if name != "deprel" and values
    ]
    found += [(f"misc.{key}", values) for key, values in _misc(words).items()]
    if not found and filled["deprel"]:
        found.append(("deprel", filled["deprel"]))
    if not found:
        found.append(("upos", []))  # whose error says what is missing
    sureness = 0.97 if len(found) == 1 else 0.9
    return [
        Reading(
            "token_classification",
            {"format": "conllu", "column": column},
            max(0.1, sureness - 0.1 * place),
            [shape, f"{column} has {len(set(values))} tags ({quoted(values)})" if values else "no tags yet"],
            _QUESTION,
            f"{column}: {quoted(values)}",
        )
        for place, (column, values) in enumerate(found)
    ]


def _misc(words: Sequence[dict[str, str]]) -> dict[str, list[str]]:
    """Return the values of the keys in MISC whose values are tags with prefixes."""
    values: dict[str, list[str]] = {}
    for word in words:
        for entry in word["misc"].split("|"):
            key, equals, value = entry.partition("=")
            if equals:
                values.setdefault(key, []).append(value)
    return {key: found for key, found in values.items() if all(map(_PREFIXED.fullmatch, found))}


class _Column(NamedTuple):
    """A column of a file.

    Attributes:
        number: counted from 1, as recipes do.
        values: in all rows.
        kinds: how many values are different.
        is_prefixed: whether all are tags with a prefix, some of them other than ``O``.
    """

    number: int
    values: list[str]
    kinds: int
    is_prefixed: bool


def conll_readings(head: Head) -> list[Reading]:
    """Return how a file of columns may be read: by which column of tags.

    Raises:
        UserError: if it has columns of tokens, but also a header, or no blank line between sentences.
    """
    sentences = _sentences(head)
    rows = [row for sentence in sentences for row in sentence]
    if not rows:
        return []
    width, count = Counter(map(len, rows)).most_common(1)[0]
    if width < 2 or count < _MOST * len(rows):
        return []
    sentences = [[row for row in sentence if len(row) == width] for sentence in sentences]
    columns = _columns(sentences, width)
    token, tags = _roles(columns)
    if token is None or not tags or sum(" " in value.strip(" ") for value in token.values) > 0.1 * count:
        return []
    if len(sentences) == 1:
        if not head.is_whole or len(rows) > _ONE_SENTENCE:
            if max(tag.kinds for tag in tags) > 0.2 * len(rows):
                return []
            raise UserError(
                f"{head.path}: columns of tokens and tags, but no blank line in {len(rows):,} lines; "
                "expected one after each sentence"
            )
        if max(tag.kinds for tag in tags) >= token.kinds and not any(tag.is_prefixed for tag in tags):
            return []
    _refuse_header(head, sentences[0][0], token)
    return _by_tags(width, token, tags, one=len(sentences) == 1)


def _sentences(head: Head) -> list[list[list[str]]]:
    """Return the cells of each line of each sentence, without comments."""
    lines = head.lines[:_ROWS]
    blocks: list[list[str]] = [[]]
    for line in lines:
        if is_blank(line) or line.startswith("-DOCSTART-"):
            blocks.append([])
        else:
            blocks[-1].append(line)
    if not head.is_whole or len(head.lines) > _ROWS:
        blocks[1:] = blocks[1:-1]  # the last is cut off
    between = "\t" if 2 * sum("\t" in line for line in lines) > sum(map(bool, lines)) else " "
    sentences = []
    for block in blocks:
        rows = [split(line, between) for line in block]
        kept = [
            row
            for row, line in zip(rows, block, strict=True)
            if not (line.startswith("#") and len(row) != len(rows[-1]))
        ]
        if kept:
            sentences.append(kept)
    return sentences


def _columns(sentences: Sequence[Sequence[Sequence[str]]], width: int) -> list[_Column]:
    """Return the columns that may be of tokens or tags: no numbers of lines, and nothing constant."""
    columns = []
    for place in range(width):
        values = [row[place] for sentence in sentences for row in sentence]
        kinds = len(set(values))
        if kinds == 1 or all(map(_NUMBER.fullmatch, values)):
            continue
        is_prefixed = all(map(_PREFIXED.fullmatch, values)) and any(len(value) > 1 for value in values)
        columns.append(_Column(place + 1, values, kinds, is_prefixed))
    return columns


def _roles(columns: Sequence[_Column]) -> tuple[_Column | None, list[_Column]]:
    """Return the column of tokens and those that may be of tags, the likeliest first.

    Tokens are of the most kinds; where another column has nearly as many, as one of lemmas has, they come
    first. Among tags, the last with prefixes comes first: entities are added behind parts of speech.
    """
    words = [column for column in columns if not column.is_prefixed]
    if not words:
        return None, []
    most = max(column.kinds for column in words)
    many = [column for column in words if column.kinds >= 0.6 * most]
    token = next((column for column in many if not _is_upper(column)), many[0])
    others = [column for column in columns if column is not token]
    if len(others) > 1:
        others = [column for column in others if column.is_prefixed or column not in many]
    prefixed = [column for column in others if column.is_prefixed]
    return token, prefixed[::-1] + [column for column in others if not column.is_prefixed]


def _is_upper(column: _Column) -> bool:
    """Return whether all values look like names of tags: NOUN, PRON."""
    return all(re.fullmatch(r"[A-Z]+|[^\w\s]+", value) for value in column.values)


def _refuse_header(head: Head, first: Sequence[str], token: _Column) -> None:
    if (
        first[token.number - 1].strip().lower() in _TOKENS
        and token.values.count(first[token.number - 1]) == 1
    ):
        raise UserError(
            f"{head.path}:1: a header ({' '.join(first)[:60]}), which CoNLL files have not; expected tokens "
            f"from the first line: tail -n +2 {head.path} > NEW takes it off"
        )


def _by_tags(width: int, token: _Column, tags: Sequence[_Column], one: bool) -> list[Reading]:
    """Return a reading for each column of tags."""
    base: dict[str, Any] = {"format": "conll"}
    starts = {match[0] for match in map(_WIKIANN.match, token.values) if match}
    if len(starts) == 1 and all(value.startswith(tuple(starts)) for value in token.values):
        base["token_prefix"] = starts.pop()
    reasons = [
        f"{width} columns in nearly all lines",
        "no blank line" if one else "blank lines between sentences",
        f"column {token.number} has tokens ({quoted(token.values)})",
    ]
    sureness = 0.95 if len(tags) == 1 else 0.75 if tags[0].is_prefixed else 0.6
    question, doubtful = _QUESTION, False
    if one or not (tags[0].is_prefixed or _is_upper(tags[0]) or len(token.values) > _ONE_SENTENCE):
        sureness, doubtful = min(sureness, 0.6), len(tags) == 1
        question = "Are these words with a tag each, or lines of raw text?" if doubtful else _QUESTION
    readings = []
    for place, tag in enumerate(tags):
        columns = {"token": token.number, "tag": tag.number}
        plain = width == 2 and token.number == 1
        shown = f"{tag.kinds} tags ({quoted(tag.values)})"
        readings.append(
            Reading(
                "token_classification",
                base if plain else {**base, "columns": columns},
                max(0.1, sureness - 0.15 * place),
                [*reasons, f"column {tag.number} has {shown}"],
                question,
                f"words with a tag in column {tag.number}: {quoted(tag.values)}",
            )
        )
    if doubtful:
        text = Reading("causal_lm", {"format": "text"}, 0.3, ["its lines are text"], question, "raw text")
        readings.append(text)
    return readings
