"""``fangyan init``: what flags and answers say becomes a recipe."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fangyan.data.splits import find_files
from fangyan.errors import UserError
from fangyan.files import REPEAT, writing
from fangyan.first_run import questions
from fangyan.first_run.guess import Guess, guess
from fangyan.first_run.settings import suitable_model, task_of_model
from fangyan.first_run.siblings import check_readable, name_of, siblings
from fangyan.first_run.writing import TASKS, recipe_text
from fangyan.suggestions import did_you_mean
from fangyan.terminal import Terminal


@dataclass(frozen=True)
class Answers:
    """The flags of ``fangyan init``; None where the user has not said."""

    file: Path | None
    task: str | None
    train: Path | None
    dev: Path | None
    test: Path | None
    model: str | None
    name: str | None
    output: Path


def write_recipe(given: Answers, terminal: Terminal | None, say: Callable[[str], None]) -> list[str]:
    """Write a recipe, say what was found, and return what to do next, in lines.

    Args:
        given: by flags.
        terminal: where to ask for the rest; None where nobody answers.
        say: shows a line.

    Raises:
        UserError: if something is missing and cannot be asked for, no format reads the file, or the recipe is
            there already.
    """
    if given.output.exists() or given.output.is_symlink():
        raise UserError(
            f"--output: {given.output} is there already, expected a new file; --output names another"
        )
    if given.task is not None and given.task not in TASKS:
        hint = did_you_mean(given.task, TASKS)
        raise UserError(f"--task: found {given.task!r}, expected one of {', '.join(TASKS)}{hint}")
    path = given.file or given.train
    if path is not None:
        path = find_files(str(path))[0]
        found = guess(path)
    elif terminal is not None:
        path, found = questions.ask_file(terminal)
    else:
        raise UserError("--from: missing, expected a file to learn from: fangyan init --from train.conllu")
    say(f"{path}: {found.format['format']}, to learn {TASKS[found.task]}; {found.surely}, since")
    for reason in found.reasons:
        say(f"  - {reason}")
    found = _chosen(found, path, given, terminal, say)
    splits = _splits(found, path, given, terminal, say)
    model = given.model
    suited = suitable_model(found)
    if model is None and terminal is not None:
        model = questions.ask_model(suited, terminal)
    elif model is None and suited is not None:
        say(f"the model is {suited.path}, which needs no download; --model names another")
    name = given.name or name_of(path)
    if given.name is None and terminal is not None:
        name = questions.ask_name(name, terminal)
    train = str(given.train or path)
    text = recipe_text(found, name, train, splits.get("dev"), splits.get("test"), model, str(given.output))
    with writing(given.output, REPEAT), given.output.open("x", encoding="utf-8") as file:
        file.write(text)
    recipe = shlex.quote(str(given.output))
    return [
        f"{given.output} is written: read it, each field has a comment. Then:",
        f"  fangyan check {recipe}",
        f"  fangyan train {recipe}",
        f"  fangyan predict {shlex.quote(f'runs/{name}')} {shlex.quote(found.sample)}",
    ]


def _chosen(
    found: Guess, path: Path, given: Answers, terminal: Terminal | None, say: Callable[[str], None]
) -> Guess:
    """Return which of a file's readings is meant: by the flags, by an answer, or else the likeliest."""
    readings = [answer.guess for answer in found.answers] or [found]
    task = given.task
    if task is None and given.model is not None and len({reading.task for reading in readings}) > 1:
        task = task_of_model(given.model)
    if task is not None:
        fitting = [reading for reading in readings if reading.task == task]
        if not fitting and given.task is not None:
            tasks = " or ".join(dict.fromkeys(reading.task for reading in readings))
            raise UserError(f"--task: found {task}, but {path} has what is for {tasks}")
        if len(fitting) == 1:
            found = fitting[0]
    if found.question is None:
        return found
    if terminal is not None:
        return questions.ask_which(found, terminal)
    say(f"{found.question} Taken: {found.answers[0].text} (to change in the recipe)")
    return found


def _splits(
    found: Guess, path: Path, given: Answers, terminal: Terminal | None, say: Callable[[str], None]
) -> dict[str, str]:
    """Return the files of dev and test, by the flags, or beside the one to train on."""
    splits = {name: file for name, file in (("dev", given.dev), ("test", given.test)) if file is not None}
    for file in splits.values():
        check_readable(find_files(str(file))[0], found)
    beside = {name: file for name, file in siblings(path, found).items() if name not in splits}
    if terminal is not None:
        beside = questions.ask_siblings(beside, terminal)
    else:
        for name, file in beside.items():
            say(f"{file} lies beside it, and is taken as {name}")
    return {name: str(file) for name, file in {**splits, **beside}.items()}
