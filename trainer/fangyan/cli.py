"""The command line. Each command imports what it needs, so that ``--help`` is quick."""

from __future__ import annotations

import errno
import gc
import json
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fangyan.cli_end import end, fail, leave
from fangyan.cli_options import (
    MOST_RANKS,
    AnswersOption,
    FormatOption,
    HostfileOption,
    InputOption,
    MaxNewTokensOption,
    Overrides,
    RanksOption,
    RecipeArgument,
    RestartsOption,
    RunArgument,
    SourceOption,
    TemperatureOption,
    TrainCommand,
    TrialsOption,
)
from fangyan.cli_output import given, lines_of, predictions, user_lines, write_pieces
from fangyan.errors import Stopped, UserError
from fangyan.terminal import Terminal, arguments_error, printable, use_utf8

if TYPE_CHECKING:
    from fangyan.recipe import Recipe
    from fangyan.tasks.report import Report
    from fangyan.training.staged_recipe import StagedRecipe

app = typer.Typer(
    help="Adapts language models to dialects and local languages.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _launched(
    _local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0,
    with_input: Annotated[bool, typer.Option("--end-with-input", hidden=True)] = False,
) -> None:
    """Take the options that launchers pass to every rank.

    The first is DeepSpeed's, and LOCAL_RANK says the same. The second is of ``train --hostfile``.
    """
    if with_input:
        from fangyan.distributed.front import end_with_input

        end_with_input()


@app.command(cls=TrainCommand)
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(
            help="auto: resume from the run's newest whole checkpoint, if any. Or a checkpoint's folder."
        ),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Trace a few steps into the run folder, and show what they cost."),
    ] = False,
    seeds: Annotated[
        int | None,
        typer.Option(min=2, max=1000, help="Run with so many seeds; mean and spread of the metrics."),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(min=2, max=1000, help="Cross-validate: so many runs, each tests on a part of train."),
    ] = None,
    hostfile: HostfileOption = None,
    max_restarts: RestartsOption = 0,
) -> None:
    """Run a recipe: evaluate, train, evaluate, export.

    Several ranks: deepspeed --num_gpus N --module fangyan train RECIPE (--num_accelerators on CPUs).
    """
    from fangyan.recipe import Recipe
    from fangyan.training.staged_recipe import load_training

    loaded = load_training(recipe, overrides)  # before torch is imported: a mistake in it is said at once
    if not isinstance(loaded, Recipe):
        if hostfile is not None or folds or profile or resume not in (None, "auto"):
            raise UserError(
                "stages resume by themselves, expected no --resume but auto, and --seeds alone beside"
            )
        _train_stages(loaded, seeds)
        return
    if hostfile is None and max_restarts:
        raise UserError("--max-restarts: is for --hostfile, which names the nodes to start on")
    if hostfile is not None:
        if seeds or folds:
            raise UserError("--hostfile is for one run, expected neither --seeds nor --folds")
        from fangyan.distributed.hostfile import read_hostfile
        from fangyan.distributed.nodes import train_on_nodes

        arguments = [recipe, *(overrides or []), *(["--profile"] if profile else [])]
        hosts = read_hostfile(hostfile)
        raise typer.Exit(train_on_nodes(hosts, arguments, loaded.folder, resume, max_restarts))
    # What ends a run says that --resume auto resumes it, also here.
    if (seeds or folds) and (resume not in (None, "auto") or profile):
        raise UserError(
            "--seeds and --folds resume by themselves, expected no --resume but auto, and no --profile"
        )
    _train_here(loaded, resume, profile, seeds, folds)


def _train_stages(staged: StagedRecipe, seeds: int | None) -> None:
    """Train all stages in this process, which may be one of several ranks."""
    from fangyan.distributed.process_group import stop_distributed
    from fangyan.training.stages import repeat_stages, train_stages

    if seeds:
        repeat_stages(staged, seeds)
    else:
        train_stages(staged)
    stop_distributed()


def _train_here(
    recipe: Recipe, resume: str | None, profile: bool, seeds: int | None, folds: int | None
) -> None:
    """Train in this process, which may be one of several ranks."""
    if seeds or folds:
        from fangyan.training.repeats import repeat

        repeat(recipe, seeds, folds)
    else:
        from fangyan.training.train import train as run

        run(recipe, resume, profile)
    from fangyan.distributed.process_group import stop_distributed

    stop_distributed()


@app.command()
def tune(recipe: RecipeArgument, overrides: Overrides = None, trials: TrialsOption = 20) -> None:
    """Search for better values of the fields in the recipe's section tune, by the dev metric.

    The same command again goes on where it was interrupted. Several ranks: deepspeed --module fangyan tune.
    """
    from fangyan.recipe import load_recipe
    from fangyan.training.tune.fields import check_spaces

    loaded = load_recipe(recipe, overrides)
    check_spaces(loaded)  # before torch is imported
    from fangyan.distributed.process_group import stop_distributed
    from fangyan.training.tune.search import tune as run

    run(loaded, trials)
    stop_distributed()


@app.command()
def check(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    ranks: RanksOption = 1,
    ranks_per_node: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_RANKS, help="Of a run on several nodes.", show_default=False),
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(min=1e-6, max=1e6, help="Between nodes, GB/s of each.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object in place of tables.")] = False,
) -> None:
    """Check a recipe's data and model before it is run, and estimate memory and time.

    Exit code 0: no errors, but maybe warnings. 1: errors, which would stop a run. 2: the recipe itself
    cannot be read.
    """
    from fangyan.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    from fangyan.distributed.process_group import start_distributed
    from fangyan.training import check_report
    from fangyan.training.check import check as run
    from fangyan.training.plan import Ranks

    start_distributed()
    report = run(loaded, Ranks(ranks, ranks_per_node, bandwidth))
    if as_json:
        write_pieces([json.dumps(check_report.as_json(report), ensure_ascii=False, indent=2), "\n"], None)
    else:
        console = Terminal(highlight=False)
        for table in check_report.tables(report, loaded, ranks):
            console.print(table)
    if report.errors:
        raise typer.Exit(1)


@app.command("estimate-memory")
def estimate_memory(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    ranks: RanksOption = 1,
) -> None:
    """Estimate a recipe's memory: load its data and model, and run one micro-batch."""
    from fangyan.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    from fangyan.distributed.process_group import start_distributed
    from fangyan.training import memory
    from fangyan.training.workload import Workload

    start_distributed()
    Terminal().print(memory.memory_table(memory.estimate_memory(Workload(loaded), ranks), loaded, ranks))


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
    data: Annotated[
        list[str] | None,
        typer.Option(help="A file of the run's format; may be repeated. By default the run's test split."),
    ] = None,
    source: SourceOption = None,
    answers: AnswersOption = None,
) -> None:
    """Evaluate a run's model: a tagger's metrics are in percent."""
    from fangyan.inference.load import evaluate as measure

    reports: list[Report] = []
    metrics = measure(
        run,
        data,
        say=lambda message: print(f"fangyan: {printable(message)}", file=sys.stderr),
        on_report=reports.append,
        source=source,
        **({} if answers is None else {"answers": answers}),
    )
    table = Table("metric", "value")
    for name, value in metrics.items():
        table.add_row(name.replace("_", " "), f"{value:.2f}")
    Terminal().print(table)
    for report in reports:
        for table in report.tables("Scores"):
            Terminal().print(table)


@app.command()
def predict(
    run: RunArgument,
    text: Annotated[list[str] | None, typer.Argument(help="Sentences.", show_default=False)] = None,
    input: InputOption = None,
    output: Annotated[
        Path | None,
        typer.Option(help="A file to write; by default standard output.", show_default=False),
    ] = None,
    format: FormatOption = None,
    source: SourceOption = None,
    probabilities: Annotated[
        int,
        typer.Option(
            min=0,
            help="How many of a token's most likely tags, or a text's classes, to write to --input's file.",
        ),
    ] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON lines: tokens and tags, or text and continuation.")
    ] = False,
    max_new_tokens: MaxNewTokensOption = None,
    temperature: TemperatureOption = None,
) -> None:
    """Tag, classify, answer or continue texts, a line each as they come in; or a file in its own format."""
    from fangyan.inference.annotate import annotate, format_of

    if bool(text) == (input is not None):
        raise UserError("predict needs either sentences, or --input with a file (- for standard input)")
    options = given(max_new_tokens=max_new_tokens, temperature=temperature)
    data = None if input is None or input == Path("-") else format_of(run, input, format, source)
    if data is not None and input is not None:
        for name in (*options, *(["json"] if as_json else [])):
            raise UserError(f"--{name.replace('_', '-')}: is for text, found a file of format {data.format}")
        write_pieces(annotate(run, input, data, probabilities, source), output)
        return
    for option, value in (("--probabilities", probabilities), ("--format", format)):
        if value:
            raise UserError(
                f"{option}: is for --input with a CoNLL, JSON lines or CSV file, found plain text"
            )
    # Who writes to standard input waits for an answer per line; a file is faster in larger pieces.
    texts = text or lines_of(input)
    typed = input == Path("-")
    write_pieces(predictions(run, texts, as_json, interactive=typed, options=options, source=source), output)


@app.command()
def chat(
    run: RunArgument,
    max_new_tokens: MaxNewTokensOption = None,
    temperature: TemperatureOption = None,
) -> None:
    """Talk with a model of the task instruction: a line asks, and knows all before it.

    /reset forgets them, /quit ends.
    """
    from fangyan.inference.chat import chat as talk

    options = given(max_new_tokens=max_new_tokens, temperature=temperature)
    talk(run, user_lines(), lambda piece: write_pieces([piece], None), options)


@app.command()
def export(
    run: RunArgument,
    output: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge an adapter into its model, for plain transformers.")
    ] = False,
) -> None:
    """Write a run's model to a folder: what plain transformers or PEFT load."""
    from fangyan.inference import load

    (load.merge if merge else load.export)(run, output)


@app.command()
def env() -> None:
    """Show what this machine has: send it with a bug report."""
    from fangyan.environment import describe

    table = Table("part", "found")
    for name, value in describe().items():
        table.add_row(name, value)
    Terminal().print(table)


# Errors that need not name a file to be the machine's.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


def main() -> None:
    """Run the ``fangyan`` command: a user's mistake is one sentence and exit code 2."""
    # Imports make a million objects that stay: a garbage collector that wakes often took 0.6 of the 4.5
    # seconds of `fangyan predict RUN TEXT`.
    gc.set_threshold(5_000)
    use_utf8()
    if mistake := arguments_error():
        fail(mistake)
    try:
        app()
    except Stopped as error:  # which the run's log has said
        end(error.exit_code)
    except UserError as error:
        # What every rank meets is said once per machine.
        silent = error.on_every_rank and os.environ.get("LOCAL_RANK", "0") != "0"
        fail(str(error), silent, error.exit_code)
    except BrokenPipeError:  # whoever read the output has gone
        os._exit(0)
    except OSError as error:
        if error.filename is None and error.errno not in _DISK:
            raise
        name = error.filename or "the disk"
        fail(f"{os.fsdecode(name) if isinstance(name, bytes) else name}: {error.strerror or error}")
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, without importing torch for --help
            traceback.print_exc()
            end(1, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        fail(
            "train.batch_tokens: the GPU's memory does not hold a step; expected fewer tokens, or more "
            f"train.gradient_accumulation_steps ({str(error).splitlines()[0]})"
        )


def command() -> None:
    """Run the ``fangyan`` command in a process that is its own."""
    try:
        main()
    except SystemExit as ended:
        leave(ended.code if isinstance(ended.code, int) else int(ended.code is not None))
    leave(0)
