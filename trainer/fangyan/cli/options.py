"""What several commands of the command line take, and their help."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from fangyan.cli import completion
from fangyan.terminal import Terminal, keep_stdout_for_json, make_quiet

# Places of options in the context of a command, which is its group's too.
_IS_QUIET, _IS_JSON = "fangyan.quiet", "fangyan.json"


def _quiet(context: typer.Context, value: bool) -> None:
    context.meta[_IS_QUIET] = value or context.meta.get(_IS_QUIET, False)


def _json(context: typer.Context, value: bool) -> bool:
    context.meta[_IS_JSON] = value
    return value


QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet",
        help="Show results, warnings and errors alone.",
        callback=_quiet,
        expose_value=False,
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json",
        help="One JSON document on standard output, with the result, and nothing else there.",
        callback=_json,
    ),
]


@cache
def _quiet_option() -> Any:
    """Return the option as typer makes it for a command."""
    app = typer.Typer(add_completion=False)

    @app.command()
    def _(quiet: QuietOption = False) -> None:
        del quiet

    (option,) = typer.main.get_command(app).params
    return option


class Command(typer.core.TyperCommand):
    """A command that takes ``--quiet``, as ``fangyan`` itself does before its name."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params.append(_quiet_option())

    def invoke(self, ctx: Any) -> Any:
        """Run the command, which is quiet and has standard output to itself where that was asked for."""
        if ctx.meta.get(_IS_QUIET):
            make_quiet()
        if ctx.meta.get(_IS_JSON):
            keep_stdout_for_json()
        return super().invoke(ctx)


class TrainCommand(Command):
    """Adds every recipe field to ``fangyan train --help``."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the options, then the fields."""
        from fangyan.recipe import describe_fields

        super().format_help(ctx, formatter)
        table = Table(title="Recipe fields", title_justify="left")
        for column in ("field", "default", "meaning"):
            table.add_column(column, overflow="fold")
        for field in describe_fields():
            name = f"{field.name} [{', '.join(field.members)}]" if field.members else field.name
            table.add_row(escape(name), escape(field.default), escape(field.meaning))
        Terminal().print(table)


RecipeArgument = Annotated[
    str,
    typer.Argument(
        help="A YAML recipe, or the name of one that comes with fangyan.",
        show_default=False,
        autocompletion=completion.recipes,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="key.sub=value, replacing fields of the recipe.",
        show_default=False,
        autocompletion=completion.fields,
    ),
]
InputOption = Annotated[
    Path | None,
    typer.Option(
        help="A file: .conllu, .conll, .jsonl or .csv, which is written with what is predicted and all else "
        "as it is; or texts, one per line. - is text from standard input.",
        show_default=False,
    ),
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        help="Of --input, where neither its name nor the run's recipe says it: conll, or "
        "{format: conllu, column: xpos}.",
        show_default=False,
        autocompletion=completion.formats,
    ),
]
# More than any cluster has.
MOST_RANKS = 65_536
RanksOption = Annotated[int, typer.Option(min=1, max=MOST_RANKS, help="Of the run that is meant.")]
RunArgument = Annotated[
    Path,
    typer.Argument(
        help="A run folder, or an exported model.", show_default=False, autocompletion=completion.runs
    ),
]
HostfileOption = Annotated[
    Path | None,
    typer.Option(
        help="Run on several nodes by ssh: a file of lines such as node1 slots=4, by which 4 ranks start "
        "there.",
        show_default=False,
    ),
]
RestartsOption = Annotated[
    int,
    typer.Option(
        "--max-restarts",
        min=0,
        help="With --hostfile: where a rank or a node is lost, go on from the newest checkpoint on the nodes "
        "that are left, so many times.",
    ),
]
TrialsOption = Annotated[
    int, typer.Option(min=1, max=10_000, help="How many in all, those of earlier calls included.")
]
MaxNewTokensOption = Annotated[
    int | None,
    typer.Option(
        help="Most sub-words that a model writes; by default 64 after a text, 512 as an answer.",
        show_default=False,
    ),
]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        help="Of a model that writes: 0, the default, takes the most likely sub-word each time.",
        show_default=False,
    ),
]
SourceOption = Annotated[
    str | None,
    typer.Option(
        help="For a run on several data sets: which of them the texts belong to.", show_default=False
    ),
]
AnswersOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Of the task instruction: how many answers to write, for chrF, BLEU and exact match; 100 by "
        "default.",
        show_default=False,
    ),
]
