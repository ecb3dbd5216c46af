"""Commands on recipes: train, tune, check, estimate-memory."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fangyan.cli.options import (
    MOST_RANKS,
    HostfileOption,
    JsonOption,
    Overrides,
    RanksOption,
    RecipeArgument,
    RestartsOption,
    TrialsOption,
)
from fangyan.cli.output import write_pieces
from fangyan.errors import UserError
from fangyan.terminal import OUTPUT, give_stdout_back, print_json, print_results

if TYPE_CHECKING:
    from fangyan.recipe import Recipe
    from fangyan.training.staged_recipe import StagedRecipe


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
    as_json: JsonOption = False,
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
        found = _train_stages(loaded, seeds)
        if as_json:
            print_json(found)
        return
    if hostfile is None and max_restarts:
        raise UserError("--max-restarts: is for --hostfile, which names the nodes to start on")
    if hostfile is not None:
        if seeds or folds:
            raise UserError("--hostfile is for one run, expected neither --seeds nor --folds")
        options = {"--profile": profile, "--quiet": OUTPUT.quiet, "--json": as_json}
        arguments = [recipe, *(overrides or []), *(name for name, given in options.items() if given)]
        raise typer.Exit(_train_on_nodes(hostfile, arguments, loaded, resume, max_restarts))
    # What ends a run says that --resume auto resumes it, also here.
    if (seeds or folds) and (resume not in (None, "auto") or profile):
        raise UserError(
            "--seeds and --folds resume by themselves, expected no --resume but auto, and no --profile"
        )
    found = _train_here(loaded, resume, profile, seeds, folds)
    if as_json:
        print_json(found)


def _train_on_nodes(
    hostfile: Path, arguments: list[str], recipe: Recipe, resume: str | None, max_restarts: int
) -> int:
    """Train on several nodes; return the exit code."""
    from fangyan.distributed.hostfile import read_hostfile
    from fangyan.distributed.nodes import train_on_nodes

    hosts = read_hostfile(hostfile)
    give_stdout_back()  # to the first rank
    return train_on_nodes(hosts, arguments, recipe.folder, resume, max_restarts)


def _train_stages(staged: StagedRecipe, seeds: int | None) -> dict[str, Any]:
    """Train all stages in this process, which may be one of several ranks; return what JSON has of it."""
    from fangyan.distributed.process_group import stop_distributed
    from fangyan.training.stages import repeat_stages, train_stages

    found = asdict(repeat_stages(staged, seeds)) if seeds else {"after": train_stages(staged)}
    stop_distributed()
    return {"folder": str(staged.folder), **found}


def _train_here(
    recipe: Recipe, resume: str | None, profile: bool, seeds: int | None, folds: int | None
) -> dict[str, Any]:
    """Train in this process, which may be one of several ranks; return what JSON has of it."""
    if seeds or folds:
        from fangyan.training.repeats import repeat

        found = {"folder": recipe.folder, **asdict(repeat(recipe, seeds, folds))}
    else:
        if profile:  # torch's profiler would tell each start, and each tensor from before
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        from fangyan.training.train import train as run

        found = asdict(run(recipe, resume, profile))
    from fangyan.distributed.process_group import stop_distributed

    stop_distributed()
    return {**found, "folder": str(found["folder"])}


def tune(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    trials: TrialsOption = 20,
    as_json: JsonOption = False,
) -> None:
    """Search for better values of the fields in the recipe's section tune, by the dev metric.

    The same command again goes on where it was interrupted. Several ranks: deepspeed --module fangyan tune.
    """
    from fangyan.recipe import load_recipe
    from fangyan.training.tune.fields import check_spaces

    loaded = load_recipe(recipe, overrides)
    check_spaces(loaded)  # before torch is imported
    from fangyan.distributed.process_group import stop_distributed
    from fangyan.training.tune.search import tune as run

    best = run(loaded, trials)
    stop_distributed()
    if as_json:
        print_json({"folder": str(loaded.folder), "best": None if best is None else asdict(best)})


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
    as_json: JsonOption = False,
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
        print_json(check_report.as_json(report))
    else:
        print_results(*check_report.tables(report, loaded, ranks))
    if report.errors:
        raise typer.Exit(1)


def prompt(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    shots: Annotated[
        int,
        typer.Option(min=0, max=10_000, help="Labelled texts, or tokens, of train to show in each prompt."),
    ] = 0,
    examples: Annotated[
        int, typer.Option(min=1, help="Most examples of test, or dev, to score; they are drawn.")
    ] = 100,
    words: Annotated[
        str,
        typer.Option(
            help="What stands for a label in a prompt, by default itself: {LABEL: WORD, LABEL: WORD}."
        ),
    ] = "{}",
    template: Annotated[
        str | None,
        typer.Option(
            help="A prompt, with {text} and {pair}, or {sentence}, {marked} and {token}; a label follows it.",
            show_default=False,
        ),
    ] = None,
    instruction: Annotated[str, typer.Option(help="What comes before everything.", show_default=False)] = "",
    show: Annotated[bool, typer.Option("--show", help="Show a prompt.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Score a causal model that is prompted, not trained, on a recipe's data, by the words for its labels."""
    from fangyan.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    from fangyan.prompting.evaluate import evaluate_prompts, parse_words

    found = evaluate_prompts(loaded, shots, examples, parse_words(words), template, instruction)
    if as_json:
        print_json(asdict(found))
        return
    if show:
        write_pieces([found.prompt, "\n"], None)
    shown = f"{found.shots} shown" if found.shots else "none shown"
    table = Table(f"{found.examples:,} examples of {found.split}, {shown}")
    for column in ("floor", "prompted", "calibrated"):
        table.add_column(column, justify="right")
    for name, value in found.plain.items():
        floor = f"{found.floor[name]:.2f}" if name in found.floor else ""
        table.add_row(name.replace("_", " "), floor, f"{value:.2f}", f"{found.calibrated[name]:.2f}")
    print_results(table)


def estimate_memory(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    ranks: RanksOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Estimate a recipe's memory: load its data and model, and run one micro-batch."""
    from fangyan.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    from fangyan.distributed.process_group import start_distributed
    from fangyan.training import memory
    from fangyan.training.workload import Workload

    start_distributed()
    estimate = memory.estimate_memory(Workload(loaded), ranks)
    if as_json:
        print_json(estimate.as_json())
    else:
        print_results(memory.memory_table(estimate, loaded, ranks))
