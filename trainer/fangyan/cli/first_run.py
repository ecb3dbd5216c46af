"""Commands of a first run: init, recipes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fangyan.cli import completion
from fangyan.cli.output import write_pieces
from fangyan.terminal import Terminal, printable


def init(
    file: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="A file of yours: its format, columns, tag scheme and task are guessed, and dev and "
            "test files beside it are found.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="What is learnt, where the file leaves that open.", show_default=False),
    ] = None,
    train: Annotated[
        Path | None, typer.Option(help="The file to train on, if not that of --from.", show_default=False)
    ] = None,
    dev: Annotated[
        Path | None,
        typer.Option(
            help="A file that chooses the best epoch; by default a share of train.", show_default=False
        ),
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option(
            help="A file that is scored at the end; by default a share of train.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A folder, a name on the hub, or scratch; by default what suits and needs no download.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the run.", show_default=False)] = None,
    output: Annotated[Path, typer.Option(help="The recipe to write, a new file.")] = Path("recipe.yaml"),
) -> None:
    """Write a recipe for data of your own, with a comment on each field.

    In a terminal it asks for what is not given, with an answer that Enter takes.
    """
    from fangyan.first_run.command import Answers, write_recipe

    terminal = Terminal(highlight=False) if sys.stdin.isatty() and sys.stdout.isatty() else None
    given = Answers(file, task, train, dev, test, model, name, output)
    write_recipe(given, terminal, lambda line: print(printable(line)))


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(help="One of them, to print.", show_default=False, autocompletion=completion.recipes),
    ] = None,
) -> None:
    """List the recipes that come with fangyan, or print one."""
    from fangyan.first_run.shipped import shipped
    from fangyan.recipe import find_recipe

    if name is not None:
        write_pieces([find_recipe(name).read_text(encoding="utf-8")], None)
        return
    table = Table("recipe", "what it does")
    table.columns[0].no_wrap = True
    for recipe in shipped():
        details = f"{recipe.task} by {recipe.model} on {recipe.data}; needs {recipe.needs}"
        table.add_row(recipe.name, f"{recipe.summary}\n{details}")
    Terminal(highlight=False).print(table)
    print("fangyan recipes NAME prints one, and fangyan train NAME runs it.")
