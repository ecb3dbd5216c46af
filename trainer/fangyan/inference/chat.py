"""A conversation with a trained assistant in the terminal: ``fangyan chat``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fangyan.data.formats.messages import Message
from fangyan.inference.load import load

# What ends a conversation, and what begins another.
QUIT, RESET = "/quit", "/reset"


def chat(run: Path, lines: Iterable[str], write: Callable[[str], None], options: dict[str, Any]) -> None:
    """Answer lines as they come, each with all before it; :data:`RESET` forgets them.

    Args:
        run: a run folder, or an exported model.
        lines: of the user's; empty ones are passed over.
        write: is given the answers, a piece at a time.
        options: ``max_new_tokens`` and ``temperature``.

    Raises:
        UserError: if the model is no assistant, or for an option out of bounds.
    """
    assistant = load(run)
    messages: list[Message] = []
    for line in lines:
        text = line.strip()
        if text == QUIT:
            return
        if text == RESET:
            messages = []
        elif text:
            messages.append({"role": "user", "content": text})
            pieces = []
            for piece in assistant.chat(messages, **options):
                pieces.append(piece)
                write(piece)
            write("\n")
            messages.append({"role": "assistant", "content": "".join(pieces)})
