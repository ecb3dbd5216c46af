"""How a file is read: as it was guessed, or as the user corrects it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fangyan.data.example import Example
from fangyan.data.formats.conll import is_blank, split
from fangyan.data.formats.for_task import check_fields
from fangyan.errors import UserError
from fangyan.first_run.guess import Guess, data_of, guess
from fangyan.first_run.reading import read_head
from fangyan.tasks import TASKS

# What is offered, in the words of the page. Each has recipes of its own.
TASK_NAMES = {
    "token_classification": "Tag every word: parts of speech, names, word boundaries",
    "sequence_classification": "Sort texts into classes, or give them a number",
    "extractive_qa": "Find answers to questions in a text",
    "instruction": "Answer as an assistant does: conversations, translations",
    "causal_lm": "Write on: a language model reads more of a language",
    "masked_lm": "Fill in words: an encoder reads a language before it learns a task",
}
FORMAT_NAMES = {
    "conllu": "CoNLL-U, of Universal Dependencies (ten columns)",
    "conll": "CoNLL: a word and its tag on each line",
    "jsonl": "JSON lines: an object on each line",
    "csv": "A table with a header: CSV or TSV",
    "chat": "CHAT transcripts, of TalkBank",
    "squad": "SQuAD's JSON: questions and answers",
    "text": "Plain text: a text on each line",
}
SCHEME_NAMES = {
    "auto": "Found by itself",
    "plain": "A label for each word by itself, such as NOUN",
    "segmentation": "Words: B- and I- say where words begin (or BMES)",
    "iob2": "Names: B- begins one, I- goes on, O is outside (IOB2)",
    "iob1": "Names: B- only between two that touch (IOB1)",
    "iobes": "Names: also E- at the end, S- alone (IOBES)",
    "bilou": "Names: also L- at the end, U- alone (BILOU)",
    "bmes": "Names: B-, M-, E- and S- (BMES)",
    "io": "Names: types alone, such as LOC",
}
# Examples that are shown, and tokens or characters of each.
_SHOWN, _TOKENS, _CHARACTERS = 3, 24, 300


class Choice(BaseModel):
    """What the page's select boxes say; nothing where they are not there yet.

    Attributes:
        train: the file.
        answer: to the guess's question, its number.
        task: of the recipe.
        format: of the data.
        column: of CoNLL-U, the one with the tags.
        columns: ``name=column`` of each that a format has to be told.
        tokens: words or characters.
        scheme: of the tags.
    """

    train: str
    answer: int | None = None
    task: str = ""
    format: str = ""
    column: str = ""
    columns: list[str] = []
    tokens: str = ""
    scheme: str = ""

    def pairs(self) -> list[tuple[str, str]]:
        """Return it as hidden fields of a form."""
        names = Choice.model_fields.keys() - {"columns"}
        found = [(name, value) for name, value in self if name in names and value not in (None, "")]
        return [(name, str(value)) for name, value in found] + [("columns", item) for item in self.columns]


@dataclass(frozen=True)
class Select:
    """A select box for a column: its name in the form, its label, what may be chosen, and what is."""

    name: str
    label: str
    options: list[tuple[str, str]]
    chosen: str


def guessed(choice: Choice, path: Path) -> tuple[Guess, Guess]:
    """Return what a file was guessed to be, and the same as the user has corrected it.

    Raises:
        UserError: if the file cannot be read, or an option is none that is offered.
    """
    first = guess(path)
    found = first
    if choice.answer is not None and 0 <= choice.answer < len(first.answers):
        found = first.answers[choice.answer].guess
    for value, known in ((choice.task, TASK_NAMES), (choice.format, FORMAT_NAMES)):
        if value and value not in known and value not in (first.task, first.format["format"]):
            raise UserError(f"{value[:80]}: not offered, expected one of {', '.join(known)}")
    task = choice.task or found.task
    format = _format(choice, found, task)
    changed = (task, format) != (found.task, found.format)
    options = dict(found.options) if task == found.task else {}
    scheme = found.scheme if not changed else None
    if task == "token_classification" and choice.scheme:
        options = {} if choice.scheme == "auto" else {"scheme": choice.scheme}
        scheme = scheme if choice.scheme == "auto" else choice.scheme
    is_tagged = task == "token_classification"
    return first, replace(
        found, task=task, format=format, options=options, scheme=(scheme or "plain") if is_tagged else None
    )


def _format(choice: Choice, found: Guess, task: str) -> dict[str, Any]:
    """Return the fields of ``data`` as they were guessed, with what the user says in place."""
    name = choice.format or found.format["format"]
    fields: dict[str, Any] = dict(found.format) if name == found.format["format"] else {"format": name}
    if task != found.task:
        fields = {key: fields[key] for key in ("format", "separator", "quoted") if key in fields}
    if name == "conllu":
        fields["column"] = choice.column or fields.get("column", "upos")
    given = dict(item.split("=", 1) for item in choice.columns if "=" in item)
    if name == "conll" and set(given) == {"token", "tag"} and all(map(str.isdecimal, given.values())):
        fields["columns"] = {key: int(value) for key, value in given.items()}
    elif name in ("jsonl", "csv") and given and set(given) <= set(_needed(task)) | {"pair", "spans"}:
        fields["columns"] = {key: value for key, value in given.items() if value}
    if choice.tokens and task == "token_classification":
        fields.pop("tokens", None)
        if choice.tokens == "characters":
            fields["tokens"] = "characters"
    return fields


def _needed(task: str) -> tuple[str, ...]:
    fields: tuple[str, ...] = getattr(TASKS.members[task], "fields", ())
    return fields


def preview(found: Guess, path: Path) -> list[dict[str, Any]]:
    """Return the first examples of a file, to be shown.

    Raises:
        UserError: if it cannot be read so, or has not what the task needs.
    """
    data = data_of(path, found.task, found.format)
    try:
        check_fields(data, "data", found.task, _needed(found.task))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    examples = list(islice(data.read(path), _SHOWN))
    if not examples:
        raise UserError(f"{path}: no example in it, expected some")
    return [_shown(example) for example in examples]


def _shown(example: Example) -> dict[str, Any]:
    """Return an example as pairs of token and tag, or as its fields in words."""
    fields = example.fields
    if "tags" in fields:
        pairs = list(zip(fields["tokens"], fields["tags"], strict=True))
        return {"pairs": pairs[:_TOKENS], "more": max(0, len(pairs) - _TOKENS)}
    texts = {name: _as_text(value) for name, value in fields.items()}
    return {"fields": {name: text[:_CHARACTERS] for name, text in texts.items()}}


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and value and all(isinstance(item, Mapping) for item in value):
        return " / ".join(str(item.get("content", item.get("text", item))) for item in value)
    return ", ".join(map(str, value)) if isinstance(value, Sequence) else str(value)


def column_selects(found: Guess, path: Path) -> list[Select]:
    """Return select boxes for where the file has what, with samples from it."""
    name = found.format["format"]
    if name == "conllu":
        return [_of_conllu(found)]
    if name == "conll":
        row = _first_row(path)
        chosen = found.format.get("columns", {"token": 1, "tag": 2})
        return [
            Select(
                "columns",
                label,
                [(f"{key}={i}", f"column {i}: {cell[:30]}") for i, cell in enumerate(row, start=1)],
                f"{key}={chosen.get(key)}",
            )
            for key, label in (("token", "Words are in"), ("tag", "Tags are in"))
        ]
    if name not in ("jsonl", "csv"):
        return []
    keys = _keys(path, name, found.format.get("separator"))
    columns = found.format.get("columns") or {key: key for key in _needed(found.task)}
    return [
        Select(
            "columns",
            f"{key} is in",
            [(f"{key}={column}", column) for column in dict.fromkeys([*keys, str(columns.get(key, key))])],
            f"{key}={columns.get(key, key)}",
        )
        for key in columns
    ]


def _of_conllu(found: Guess) -> Select:
    columns = {
        "upos": "UPOS: universal parts of speech",
        "xpos": "XPOS: the treebank's own tags",
        "feats": "FEATS: all features together",
        "deprel": "DEPREL: relations",
    }
    for answer in found.answers:
        columns.setdefault(answer.guess.format.get("column", "upos"), answer.text)
    chosen = str(found.format.get("column"))
    columns.setdefault(chosen, chosen)
    return Select("column", "Tags are in", list(columns.items()), chosen)


def _first_row(path: Path) -> list[str]:
    lines = (
        line for line in read_head(path).lines if not is_blank(line) and not line.startswith(("#", "-DOC"))
    )
    line = next(lines, "")
    return list(split(line, "\t" if "\t" in line else " "))


def _keys(path: Path, format: str, separator: str | None) -> list[str]:
    """Return the names of a file's columns; none where its first line does not say them."""
    line = next((line for line in read_head(path).lines if line.strip()), "")
    if format == "csv":
        between = separator or ("\t" if path.suffix == ".tsv" else ",")
        return [cell for cell in next(csv.reader([line], delimiter=between), []) if cell]
    try:
        record = json.loads(line)
    except ValueError:
        return []
    return [str(key) for key in record] if isinstance(record, dict) else []
