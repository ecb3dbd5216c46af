"""Which of a record's values are tokens, tags, texts, labels, conversations or questions."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fangyan.data.json_text import parse_json
from fangyan.errors import UserError
from fangyan.first_run.reading import Reading, quoted
from fangyan.first_run.texts import raw_text

Records = Sequence[dict[str, Any]]

# Names in lower case, by which a column is taken for what it is; the values have to agree.
_TOKENS = ("tokens", "words", "token", "word", "forms", "sentence")
_TAGS = re.compile(r"(tags?|labels?|pos|upos|xpos|ner|bio|.*_tags?|.*_labels?)")
_LABELS = re.compile(
    r"(labels?|class(es)?|category|categories|gold|target|dialect|language|lang|sentiment|intent|topic|score|"
    r"rating|stars|emotions?|y|.*_labels?|.*_class)"
)
_SURELY_LABELS = ("label", "labels", "class", "category", "gold")
_PAIRS = re.compile(
    r"(pair|hypothesis|text_?(b|2)|sentence_?(b|2)|question_?2|premise|text_?(a|1)|sentence_?(a|1)|question_?1)"
)
_TEXTS = ("text", "sentence", "tweet", "utterance", "content", "comment", "review", "document", "transcript")
# Share of the records that need a value; one that is missing is then said where the file is read.
_PRESENT = 0.9
# Share of the records at most that may have classes of their own.
_CLASSES = 0.5
# Characters of classes at most, on average; and of texts that may be translations, at least.
_SHORT, _LONG = 40, 8
# Different whole numbers that may be classes.
_MOST_NUMBERS = 20


def record_readings(path: Path, records: Records, base: dict[str, Any], shape: str) -> list[Reading]:
    """Return how records may be read, the likeliest first.

    Args:
        path: of the file.
        records: of the file's beginning.
        base: the format.
        shape: of the file, for the reasons.

    Raises:
        UserError: if they have nothing that a task learns from.
    """
    names = list(dict.fromkeys(name for record in records for name in record))
    keys = f"with {', '.join(names[:8])}{', …' if len(names) > 8 else ''}"
    for find in (_talks, _questions, _spans, _tagged, _texts):
        if readings := find(records, names, base, [f"{shape}, {keys}"]):
            return readings
    raise UserError(
        f"{path}: no text in {', '.join(names)[:120]}; expected columns such as tokens and tags, text and "
        "label, or messages"
    )


def _have(records: Records, name: str, fits: Callable[[Any], bool]) -> bool:
    """Return whether all records that have a value of a name have one that fits, and most have."""
    values = [record[name] for record in records if record.get(name) not in (None, "")]
    return len(values) > _PRESENT * len(records) and all(map(fits, values))


def _named(names: Sequence[str], *wanted: str) -> dict[str, str] | None:
    """Return columns by our names, where all are there; None otherwise."""
    lower = {name.lower(): name for name in names}
    return {name: lower[name] for name in wanted} if all(name in lower for name in wanted) else None


def _columns(base: dict[str, Any], columns: dict[str, str], default: bool = False) -> dict[str, Any]:
    """Return a format with columns, which are left out where they are what a task takes by default."""
    if default and all(own == name for own, name in columns.items()):
        return base
    return {**base, "columns": columns}


def _talks(records: Records, names: Sequence[str], base: dict[str, Any], why: list[str]) -> list[Reading]:
    def is_talk(value: Any) -> bool:
        return isinstance(value, list) and all(
            isinstance(turn, dict) and {"role", "from"} & set(turn) for turn in value
        )

    for name in names:
        if _have(records, name, is_talk):
            format = base if name in ("messages", "conversations") else _columns(base, {"messages": name})
            return [Reading("instruction", format, 0.98, [*why, f"{name} has conversations"])]
    for question, answer in (("instruction", "output"), ("prompt", "completion"), ("prompt", "response")):
        columns = _named(names, question, answer)
        if columns is None:
            continue
        found = {"instruction": columns[question], "output": columns[answer]}
        if question == "instruction" and (more := _named(names, "input")):
            found = {"instruction": found["instruction"], "input": more["input"], "output": found["output"]}
        reasons = [*why, f"{columns[answer]} answers {columns[question]}"]
        return [Reading("instruction", _columns(base, found), 0.95, reasons)]
    if columns := _named(names, "source", "target"):
        reasons = [*why, f"{columns['target']} says {columns['source']} in other words"]
        return [Reading("instruction", _columns(base, columns), 0.8, reasons)]
    return []


def _questions(records: Records, names: Sequence[str], base: dict[str, Any], why: list[str]) -> list[Reading]:
    columns = _named(names, "question", "context", "answers")
    if columns is None or not _have(records, columns["context"], lambda value: isinstance(value, str)):
        return []
    reasons = [*why, "questions, and their answers in a context"]
    return [Reading("extractive_qa", _columns(base, columns, default=True), 0.97, reasons)]


def _spans(records: Records, names: Sequence[str], base: dict[str, Any], why: list[str]) -> list[Reading]:
    def is_spans(value: Any) -> bool:
        return isinstance(value, list) and all(
            isinstance(span, dict) and {"start", "end", "label"} <= set(span) for span in value
        )

    texts = [name for name in names if _have(records, name, lambda value: isinstance(value, str))]
    for name in names:
        if texts and _have(records, name, is_spans) and any(record.get(name) for record in records):
            text = next((each for each in texts if each.lower() in _TEXTS), texts[0])
            format = _columns(base, {"text": text, "spans": name}, default=True)
            if any(_cuts_a_word(record[text], record.get(name) or ()) for record in records):
                format = {**format, "tokens": "characters"}
            reasons = [*why, f"{name} has labelled parts of {text}"]
            return [Reading("token_classification", format, 0.95, reasons)]
    return []


def _cuts_a_word(text: str, spans: Any) -> bool:
    """Return whether a labelled part of a text begins or ends within what stands between white space."""
    edges = [place for span in spans for place in (span["start"], span["end"])]
    return any(0 < place < len(text) and not re.search(r"\s", text[place - 1 : place + 1]) for place in edges)


def _tagged(records: Records, names: Sequence[str], base: dict[str, Any], why: list[str]) -> list[Reading]:
    lists = {name: found for name in names if (found := _words(records, name)) is not None}
    named = [name for name in lists if name.lower() in _TOKENS]
    if len(lists) < 2:
        return []
    kinds = {name: len({word for words in found for word in words}) for name, found in lists.items()}
    tokens = named[0] if named else max(lists, key=lambda name: kinds[name])
    lengths = list(map(len, lists[tokens]))
    tags = [name for name in lists if name != tokens and list(map(len, lists[name])) == lengths]
    if max(lengths) < 2 or not tags:
        return []
    tags.sort(key=lambda name: not _TAGS.fullmatch(name.lower()))
    readings = []
    for place, name in enumerate(tags):
        values = quoted(value for words in lists[name] for value in words)
        readings.append(
            Reading(
                "token_classification",
                _columns(base, {"tokens": tokens, "tags": name}, default=True),
                max(0.1, (0.97 if len(tags) == 1 else 0.75) - 0.15 * place),
                [*why, f"as many values in {name} ({values}) as in {tokens}"],
                "Which column has the tags to learn?",
                f"{name}: {values}",
            )
        )
    return readings


def _words(records: Records, name: str) -> list[list[str]] | None:
    """Return the lists of a column, or its cells' words; None where it has neither."""
    found: list[list[str]] = []
    for record in records:
        value = record.get(name)
        words = _cell(value) if isinstance(value, str) else value
        if not isinstance(words, list) or not all(isinstance(part, str | int) for part in words):
            return None
        found.append([str(part) for part in words])
    return found


def _cell(text: str) -> Any:
    """Return a cell of a table as a list: JSON, or words between spaces."""
    if text.lstrip().startswith("["):
        with suppress(UserError):
            return parse_json(text, "")
    return text.split(" ")


def _texts(records: Records, names: Sequence[str], base: dict[str, Any], why: list[str]) -> list[Reading]:
    texts = {
        name: sum(len(record.get(name) or "") for record in records) / len(records)
        for name in names
        if _have(records, name, lambda value: isinstance(value, str))
    }
    labels = [name for name in names if _is_label(records, name)]
    labels.sort(key=lambda name: not _LABELS.fullmatch(name.lower()))
    texts = {name: length for name, length in texts.items() if name not in labels[:1]}
    if not texts:
        return []
    named = [name for name in texts if name.lower() in _TEXTS]
    pairs = [name for name in texts if _PAIRS.fullmatch(name.lower())]
    text = pairs[0] if len(pairs) == 2 else named[0] if named else max(texts, key=lambda name: texts[name])
    if not labels:
        return _unlabelled(text, texts, base, why)
    readings = []
    columns = {"text": text, **({"pair": pairs[1]} if len(pairs) == 2 else {})}
    sure = 0.95 if _LABELS.fullmatch(labels[0].lower()) else 0.7
    for place, name in enumerate(labels):
        readings += _labelled(records, {**columns, "label": name}, base, why, sure - 0.2 * place)
    return readings


def _labelled(
    records: Records, columns: dict[str, str], base: dict[str, Any], why: list[str], sure: float
) -> list[Reading]:
    """Return how texts with a label may be read: of a class, of several, or with a number."""
    name = columns["label"]
    values = [record[name] for record in records if record.get(name) not in (None, "")]
    several = any(isinstance(value, list) or str(value).lstrip().startswith("[") for value in values)
    shown = quoted(str(value) for value in values)
    format = _columns(base, columns, default="pair" not in columns)
    what = "lists of classes" if several else "labels"
    texts = " and ".join(list(columns.values())[:-1])
    reasons = [*why, f"texts are in {texts}, their {what} in {name} ({shown})"]
    of = ("sequence_classification", format)
    if several or not all(map(_is_number, values)):
        question = "Which column has the labels?"
        return [Reading(*of, sure, reasons, question, f"{name}: {shown}")]
    question = f"Are the numbers in {name} ({shown}) classes, or amounts, of which one is more than another?"
    amounts = Reading(*of, sure, reasons, question, "amounts", {"kind": "regression"})
    if len(set(map(str, values))) > _MOST_NUMBERS or not all(float(value).is_integer() for value in values):
        return [replace(amounts, question="")]
    classes = Reading(*of, 0.8 * sure, reasons, question, "classes", {"kind": "single_label"})
    return [classes, replace(amounts, sureness=0.6 * sure)]


def _unlabelled(text: str, texts: dict[str, float], base: dict[str, Any], why: list[str]) -> list[Reading]:
    """Return how texts without labels may be read: as translations of each other, or one alone."""
    long = [name for name, length in texts.items() if length >= _LONG]
    if len(long) == 2:
        question = "Which of the two texts is a model to write?"
        return [
            Reading(
                "instruction",
                _columns(base, {"source": source, "target": target}),
                0.5,
                [*why, f"{source} and {target} are texts of one meaning, it seems"],
                question,
                f"{target}, from {source}",
            )
            for source, target in (long, long[::-1])
        ]
    format = _columns(base, {"text": text}, default=True)
    return raw_text(format, [*why, f"{text} has texts, and nothing is a label"])


def _is_label(records: Records, name: str) -> bool:
    """Return whether a column may have labels: few and short values, or lists of such."""
    values = [record[name] for record in records if record.get(name) not in (None, "")]
    if len(values) <= _PRESENT * len(records):
        return False
    if all(isinstance(value, list) and all(isinstance(part, str) for part in value) for value in values):
        kinds = {part for value in values for part in value}
    elif all(isinstance(value, str | int | float) for value in values):
        kinds = {str(value) for value in values}
    else:
        return False
    if not kinds or sum(map(len, kinds)) > _SHORT * len(kinds):
        return False
    if len(kinds) == 1:  # as in the beginning of a file that is sorted by them
        return name.lower() in _SURELY_LABELS
    return _LABELS.fullmatch(name.lower()) is not None or len(kinds) <= _CLASSES * len(values)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int | float) or re.fullmatch(r"-?\d+(\.\d+)?", str(value)) is not None
