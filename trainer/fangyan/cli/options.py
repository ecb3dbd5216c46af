"""What several commands of the command line take, and their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from fangyan.cli import completion
from fangyan.terminal import Terminal


class TrainCommand(typer.core.TyperCommand):
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
