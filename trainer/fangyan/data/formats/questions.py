"""Questions as files have them: a context, and the spans of it that answer them (SQuAD 1 and 2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fangyan.data.formats.messages import text
from fangyan.errors import UserError

# Places of a text that a message names.
_NAMED = 3


def question(
    record: Mapping[str, Any], columns: Mapping[str, str], source: str, answered: bool = True
) -> dict[str, Any]:
    """Return the fields of an example: question, context, and answers, none where there is no answer.

    Args:
        record: the values of the file.
        columns: their names there.
        source: ``file:line``.
        answered: whether the answers are read too.

    Raises:
        UserError: if one is missing, or an answer is not where it says.
    """
    values: dict[str, Any] = {}
    for name in ("question", "context"):
        values[name] = text(record, columns[name], source)
        if not values[name].strip():
            raise UserError(f"{source}: {columns[name]} is empty, expected text")
    if not answered:
        return values
    found = _answers(record.get(columns["answers"]), columns["answers"], source)
    for answer in found:
        _check(answer, values["context"], source)
    return {**values, "answers": tuple(found)}


def _answers(value: Any, key: str, source: str) -> list[dict[str, Any]]:
    """Return answers that are lists of texts and starts, or a list of one object for each."""
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start", value.get("start"))
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            return [
                _answer(*pair, source, number)
                for number, pair in enumerate(zip(texts, starts, strict=True), 1)
            ]
    elif isinstance(value, list):
        objects = [part if isinstance(part, Mapping) else {} for part in value]
        pairs = ((part.get("text"), part.get("answer_start", part.get("start"))) for part in objects)
        return [_answer(*pair, source, number) for number, pair in enumerate(pairs, 1)]
    raise UserError(
        f"{source}: {key} is {str(value)[:60]!r}, expected a list of text and start, or text and "
        "answer_start as two lists of one length"
    )


def _answer(answer: Any, start: Any, source: str, number: int) -> dict[str, Any]:
    if not isinstance(answer, str) or not answer.strip():
        raise UserError(f"{source}: text of answer {number} is {str(answer)[:60]!r}, expected text")
    if type(start) is not int or start < 0:
        raise UserError(
            f"{source}: start of answer {number} is {str(start)[:60]!r}, expected a number of characters"
        )
    return {"text": answer, "start": start}


def _check(answer: Mapping[str, Any], context: str, source: str) -> None:
    """Refuse an answer that the context does not have at its start, and say where it has it."""
    wanted, start = answer["text"], answer["start"]
    found = context[start : start + len(wanted)]
    if found == wanted:
        return
    places = list(_places(context, wanted))
    there = "it does not occur in it"
    if places:
        more = ", …" if len(places) > _NAMED else ""
        there = f"it is at {', '.join(map(str, places[:_NAMED]))}{more}"
    raise UserError(
        f"{source}: answer {wanted[:40]!r} is not at {start} of the context, where {found[:40]!r} is; "
        f"{there} (characters are counted from 0)"
    )


def _places(context: str, wanted: str) -> Iterator[int]:
    """Yield where a text occurs in the context, up to one place more than a message names."""
    place = -1
    for _ in range(_NAMED + 1):
        place = context.find(wanted, place + 1)
        if place < 0:
            return
        yield place
