"""What ``fangyan init`` asks in a terminal: little, and each with an answer that Enter gives."""

from __future__ import annotations

import re
from pathlib import Path

from rich.markup import escape
from rich.prompt import Confirm, Prompt

from fangyan.errors import UserError
from fangyan.first_run.guess import Guess, guess
from fangyan.first_run.settings import Model
from fangyan.terminal import Terminal, printable


def ask_file(terminal: Terminal) -> tuple[Path, Guess]:
    """Ask for a file until there is one that can be read, and return what it is."""
    terminal.print("A file with labelled sentences, texts or conversations (docs/data.md says what is read).")
    while True:
        answer = Prompt.ask("Your data", console=terminal).strip().strip("'\"")
        path = Path(answer).expanduser()
        try:
            return path, guess(path)
        except UserError as error:
            terminal.print(str(error), markup=False)


def ask_which(found: Guess, terminal: Terminal) -> Guess:
    """Ask what decides between the readings of a file, until one is left."""
    while found.question is not None:
        terminal.print(found.question, markup=False)
        for number, answer in enumerate(found.answers, start=1):
            terminal.print(f"  {number}  {answer.text}", markup=False)
        numbers = [str(number) for number in range(1, len(found.answers) + 1)]
        chosen = Prompt.ask("Number", choices=numbers, default="1", show_choices=False, console=terminal)
        found = found.answers[int(chosen) - 1].guess
    return found


def ask_siblings(found: dict[str, Path], terminal: Terminal) -> dict[str, Path]:
    """Ask whether files beside the one to train on are dev and test."""
    if not found:
        return {}
    named = " and ".join(f"{path} ({split})" for split, path in found.items())
    question = f"Found {escape(printable(named))}. Use {'them' if len(found) > 1 else 'it'}?"
    return found if Confirm.ask(question, default=True, console=terminal) else {}


def ask_model(suited: Model | None, terminal: Terminal) -> str | None:
    """Ask for a model; None is the one that suits."""
    if suited is None:
        terminal.print(
            "It begins with a pretrained model, which has read the language: its folder, or its name "
            "on the hub, such as google-bert/bert-base-multilingual-cased."
        )
    else:
        terminal.print(suited.why, markup=False)
    while True:
        answer = Prompt.ask("Model", default=None if suited is None else suited.path, console=terminal)
        if answer and answer.strip():
            return None if suited is not None and answer == suited.path else answer.strip()


def ask_name(default: str, terminal: Terminal) -> str:
    """Ask what the run is called."""
    while True:
        name = Prompt.ask("Name of the run", default=default, console=terminal).strip()
        if re.fullmatch(r"[\w-][\w.-]{0,79}", name):
            return name
        terminal.print("Letters, digits, - and _, and . within: it becomes a folder.")
