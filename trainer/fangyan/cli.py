"""The command line. Each command imports what it needs, so that ``--help`` is quick."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fangyan.errors import UserError

app = typer.Typer(
    help="Adapts language models to dialects and local languages.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _launched(local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0) -> None:
    """Takes the option that DeepSpeed's launcher gives every rank; LOCAL_RANK says the same."""


def _show_fields(value: bool) -> None:
    if value:
        from fangyan.recipe import describe_fields

        table = Table(title="Recipe fields", title_justify="left")
        for column in ("field", "default", "meaning"):
            table.add_column(column, overflow="fold")
        for row in describe_fields():
            table.add_row(*row)
        Console().print(table)


class _TrainCommand(typer.core.TyperCommand):
    """Adds every recipe field to ``fangyan train --help``."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        _show_fields(True)


@app.command(cls=_TrainCommand)
def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key.sub=value, replacing fields of the recipe.", show_default=False),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            help="auto: go on from the run's newest whole checkpoint, if any. Or a checkpoint's folder."
        ),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Trace a few steps into the run folder, and show what they cost."),
    ] = False,
) -> None:
    """Runs a recipe: evaluates, trains, evaluates, exports.

    Several ranks: deepspeed --num_gpus N --module fangyan train RECIPE (--num_accelerators on CPUs).
    """
    from fangyan.loop import train as run
    from fangyan.recipe import load_recipe

    run(load_recipe(recipe, overrides), resume, profile)


@app.command()
def check(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key.sub=value, replacing fields of the recipe.", show_default=False),
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Of the run that is meant.")] = 1,
) -> None:
    """Says what a recipe needs of memory: loads its data and model, and runs one pass."""
    from fangyan.engine import start_distributed
    from fangyan.memory import check as needs
    from fangyan.memory import table
    from fangyan.recipe import load_recipe

    checked = load_recipe(recipe, overrides)
    start_distributed()
    Console().print(table(needs(checked, ranks), checked, ranks))


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
    data: Annotated[
        list[str] | None,
        typer.Option(help="A file of the run's format; may be repeated. By default the run's own test part."),
    ] = None,
) -> None:
    """Scores a run's model: a tagger's in percent."""
    from fangyan.predict import load

    table = Table("score", "value")
    for name, value in load(run).evaluate(data).items():
        table.add_row(name.replace("_", " "), f"{value:.2f}")
    Console().print(table)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run folder, or an exported model.", show_default=False)],
    text: Annotated[list[str] | None, typer.Argument(help="Sentences.", show_default=False)] = None,
    input: Annotated[
        Path | None,
        typer.Option(help="A text file, a sentence a line; - is standard input.", show_default=False),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON lines: tokens and tags, or text and continuation.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Most sub-words that a language model writes.")] = 64,
    temperature: Annotated[
        float, typer.Option(help="Of a language model: 0 is the likeliest sub-word each time.")
    ] = 0.0,
) -> None:
    """Tags sentences, or goes on from them: a line each, in order, as they come in."""
    from fangyan.predict import Generator, load

    if not text and input is None:
        raise UserError("predict needs sentences, or --input with a file (- for standard input)")
    # Who writes to standard input waits for an answer a line; a file is faster in larger pieces.
    interactive = input == Path("-")
    model = load(run)
    if isinstance(model, Generator):
        _generate(model, text or _lines(input), as_json, max_new_tokens, temperature)
        return
    for prediction in model.stream(text or _lines(input), chunk=1 if interactive else 256):
        if as_json:
            line = json.dumps({"tokens": prediction.tokens, "tags": prediction.tags}, ensure_ascii=False)
        else:
            line = str(prediction)
        print(line, flush=interactive)


def _generate(
    model: Any, texts: Iterable[str], as_json: bool, max_new_tokens: int, temperature: float
) -> None:
    for text in texts:
        pieces = model.stream(text, max_new_tokens, temperature)
        if as_json:
            print(json.dumps({"text": text, "continuation": "".join(pieces)}, ensure_ascii=False), flush=True)
            continue
        print(text, end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()


def _lines(path: Path | None) -> Iterable[str]:
    from fangyan.data.examples import read_lines, read_stream

    assert path is not None
    numbered = read_stream(sys.stdin.buffer, "standard input") if path == Path("-") else read_lines(path)
    return (line for _, line in numbered)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder, or an exported model.", show_default=False)],
    output: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge an adapter into its model, for plain transformers.")
    ] = False,
) -> None:
    """Writes a run's model to a folder: what plain transformers or PEFT load."""
    import shutil

    if merge:
        from fangyan.predict import merge as write

        write(run, output)
        return
    source = run / "model" if (run / "recipe.yaml").is_file() else run
    if not (source / "config.json").is_file():
        raise UserError(f"{source}: no exported model in it, expected a finished run or its model folder")
    if output.exists():
        raise UserError(f"{output}: it exists, expected a new folder")
    shutil.copytree(source, output)


@app.command()
def env() -> None:
    """Shows what this machine has: send it with a bug report."""
    from fangyan.environment import describe

    table = Table("part", "found")
    for name, value in describe().items():
        table.add_row(name, value)
    Console().print(table)


def main() -> None:
    """The ``fangyan`` command: a user's mistake is one sentence and exit code 2."""
    try:
        app()
    except UserError as error:
        # What every rank meets is said once a machine.
        _fail(str(error), silent=error.on_every_rank and os.environ.get("LOCAL_RANK", "0") != "0")
    except OSError as error:
        _fail(f"{error.filename or 'this machine'}: {error.strerror or error}")
    except KeyboardInterrupt:
        print("\nfangyan: interrupted; train --resume auto goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, without importing torch for --help
            raise
        _fail(
            "train.batch_tokens: the GPU's memory does not hold a step; expected fewer tokens, or more "
            f"train.gradient_accumulation_steps ({str(error).splitlines()[0]})"
        )


def _fail(sentence: str, silent: bool = False) -> None:
    if not silent:
        print(f"fangyan: {sentence}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads and process groups of a run that failed must not hold up the exit.
    os._exit(2)
