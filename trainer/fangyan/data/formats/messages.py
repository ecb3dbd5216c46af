"""Conversations as files have them: ``messages``, ShareGPT's, Alpaca's, and sentences with translations."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

from fangyan.errors import UserError

Message = dict[str, str]

ROLES = ("system", "user", "assistant", "tool")
# Of ShareGPT's speakers.
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
# What a file has where it has no column ``messages``: ShareGPT's conversations, or Alpaca's fields.
SHAREGPT, ALPACA = "conversations", ("instruction", "input", "output")


def conversation(record: Mapping[str, Any], key: str, source: str) -> tuple[Message, ...]:
    """Return the messages of a record: a list of objects with role and content, or with from and value.

    Args:
        record: the values of the file.
        key: of the list; where it is ``messages`` and there is none, ShareGPT's and Alpaca's keys will do.
        source: ``file:line``.

    Raises:
        UserError: if it is no conversation with an answer in it.
    """
    if key not in record and key == "messages" and SHAREGPT in record:
        key = SHAREGPT
    if key not in record and key == "messages" and "output" in record:
        return instruction(record, {name: name for name in ALPACA if name in record}, source)
    turns = record.get(key)
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{source}: {key} is {str(turns)[:60]!r}, expected a list of messages")
    messages = tuple(_message(turn, source, number) for number, turn in enumerate(turns, start=1))
    if all(message["role"] != "assistant" for message in messages):
        raise UserError(f"{source}: {key} has no message of the assistant's, expected an answer to learn")
    return messages


def _message(turn: Any, source: str, number: int) -> Message:
    fields: Any = turn if isinstance(turn, dict) else {}
    role, content = fields.get("role"), fields.get("content")
    if role is None and "from" in fields:
        role, content = _SPEAKERS.get(str(fields["from"]).lower(), fields["from"]), fields.get("value")
    if role not in ROLES:
        raise UserError(
            f"{source}: message {number} is of {str(role)[:40]!r}, expected a role of {', '.join(ROLES)}"
        )
    if not isinstance(content, str) or (role == "assistant" and not content.strip()):
        raise UserError(f"{source}: message {number} ({role}) is {str(content)[:40]!r}, expected text")
    return {"role": role, "content": content}


def instruction(record: Mapping[str, Any], columns: Mapping[str, str], source: str) -> tuple[Message, ...]:
    """Return an instruction, its input if any, and its answer, as a conversation (Taori et al. 2023).

    Raises:
        UserError: naming the value that is no text.
    """
    values = {name: text(record, key, source) for name, key in columns.items()}
    question = "\n\n".join(
        part for name in ("instruction", "input") if (part := values.get(name, "")).strip()
    )
    if not question or not values["output"].strip():
        missing = "output" if question else "instruction"
        raise UserError(f"{source}: {columns[missing]} is empty, expected text")
    return ({"role": "user", "content": question}, {"role": "assistant", "content": values["output"]})


def translation(
    record: Mapping[str, Any], columns: Mapping[str, str], prompt: str, source: str
) -> tuple[Message, ...] | None:
    """Return a sentence in a prompt, and its translation; None where both are empty.

    Raises:
        UserError: naming the value that is no text, or is empty beside one that is not.
    """
    values = {name: text(record, key, source) for name, key in columns.items()}
    empty = [name for name in ("source", "target") if not values[name].strip()]
    if len(empty) == 2:
        return None
    if empty:
        raise UserError(f"{source}: {columns[empty[0]]} is empty, expected text")
    question = prompt.replace("{source}", values["source"])
    return ({"role": "user", "content": question}, {"role": "assistant", "content": values["target"]})


def check_prompt(prompt: str) -> str:
    """Return a prompt that holds ``{source}`` once, and no other field.

    Raises:
        ValueError: for another.
    """
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(prompt) if name is not None]
    except ValueError:
        fields = []
    if fields != ["source"]:
        raise ValueError(f"found {prompt[:60]!r}, expected a text with {{source}} in it, once")
    return prompt


def text(record: Mapping[str, Any], key: str, source: str) -> str:
    """Return a value that is text.

    Raises:
        UserError: if it is none.
    """
    value = record.get(key)
    if not isinstance(value, str):
        raise UserError(f"{source}: {key} is {str(value)[:60]!r}, expected a string")
    return value
