"""Runs one after the other, each on the model of the one before: ``stages`` of a recipe."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch.distributed as dist
from rich.table import Table

from fangyan.data.retained import RETAINED
from fangyan.data.splits import read_examples
from fangyan.data.tokenization import Tokenizer
from fangyan.device import reset_peak_memory
from fangyan.distributed.process_group import on_rank_zero, start_distributed
from fangyan.errors import UserError
from fangyan.files import whole_file
from fangyan.inference import load
from fangyan.recipe import Recipe
from fangyan.tasks import evaluation
from fangyan.tasks.task import Metrics
from fangyan.terminal import parts, print_results, say_line
from fangyan.training.engine import choose_precision
from fangyan.training.loaded_data import choose_metric
from fangyan.training.repeats import Summary, finished_metrics, show_summary, summarize
from fangyan.training.staged_recipe import MERGED, StagedRecipe
from fangyan.training.train import train

# Of the whole: the scores of each stage's model on the dev splits of all stages so far.
SCORES = "stages.json"

# By the stage whose model it is, by the stage whose dev split it is.
Scores = dict[str, dict[str, Metrics]]


def train_stages(staged: StagedRecipe) -> dict[str, Metrics]:
    """Run all stages; finished ones are kept, and one that was interrupted is resumed.

    Args:
        staged: the recipes.

    Returns:
        Metrics per split of the last stage's best checkpoint.

    Raises:
        UserError: naming a stage that is of another recipe.
    """
    start_distributed()
    on_rank_zero(lambda: _check_folder(staged.folder))
    scores: Scores = {}
    after: dict[str, Metrics] = {}
    stages = {name: choose_precision(recipe) for name, recipe in staged.stages.items()}
    for number, (name, recipe) in enumerate(stages.items(), start=1):
        _say(f"stage {number} of {len(stages)}: {name}")
        after = _run(recipe)
        if number < len(stages):
            on_rank_zero(partial(_merge_adapter, recipe))
        earlier = list(stages.values())[: number - 1]
        scores[name] = on_rank_zero(partial(_scores, recipe, earlier, after))
        on_rank_zero(lambda: _write(scores, staged.folder / SCORES))
    if dist.get_rank() == 0:
        print_results(_table(stages, scores))
    return after


def repeat_stages(staged: StagedRecipe, seeds: int) -> Summary:
    """Run all stages with several seeds, each in a folder of its own; sum up the last stage's metrics."""
    found = {}
    first = next(iter(staged.stages.values())).seed
    for seed in range(first, first + seeds):
        with parts():
            found[f"seed-{seed}"] = train_stages(_with_seed(staged, seed))
    summary = summarize(found)
    on_rank_zero(lambda: show_summary(summary, staged.name, staged.folder))
    return summary


def _with_seed(staged: StagedRecipe, seed: int) -> StagedRecipe:
    """Return the stages with another seed, in a folder of their own."""
    folder = staged.folder / f"seed-{seed}"

    def moved(path: str) -> str:
        inside = Path(path).resolve().relative_to(staged.folder.resolve())
        return str(folder / inside)

    stages = {}
    for number, (name, recipe) in enumerate(staged.stages.items()):
        model = recipe.model
        if number:
            model = model.model_copy(update={"path": moved(model.path)})
        changes = {"seed": seed, "run_dir": moved(str(recipe.folder)), "model": model}
        stages[name] = recipe.model_copy(update=changes)
    return replace(staged, folder=folder, stages=stages)


def _run(recipe: Recipe) -> dict[str, Metrics]:
    """Run a stage, or the rest of it; return its metrics per split."""
    metrics = on_rank_zero(partial(finished_metrics, recipe))
    if metrics is not None:
        _say(f"{recipe.name} is finished, and kept")
        return metrics
    reset_peak_memory()
    begun = on_rank_zero(recipe.folder.is_dir)
    with parts():
        return train(recipe, resume="auto" if begun else None).after


def _merge_adapter(recipe: Recipe) -> None:
    """Merge a stage's adapter into its model, which the next stage begins with."""
    target = recipe.folder / MERGED
    if not recipe.adaptation.trains_base_weights and not target.exists():
        load.merge(recipe.folder, target)


def _scores(recipe: Recipe, earlier: list[Recipe], after: dict[str, Metrics]) -> dict[str, Metrics]:
    """Return the metrics of a stage's model on the dev split of each stage of its task, itself included."""
    exported = load.load_exported(recipe.folder / "model")
    same = [before for before in earlier if before.task.name == recipe.task.name]
    found = {}
    if same:
        model, tokenizer = exported.packed(), Tokenizer(exported.backend)
        for before in same:
            examples = read_examples(before.folder / "splits" / "dev.jsonl")
            found[_stage_of(before)] = evaluation.evaluate(
                exported.task, model, examples, tokenizer, exported.max_length
            )
    # What is better comes first, for the table.
    best = choose_metric(recipe, exported.task)
    every = {**found, _stage_of(recipe): after["dev"], **_retained(after)}
    return {stage: {best: metrics[best], **metrics} for stage, metrics in every.items()}


def _retained(metrics: dict[str, Metrics]) -> dict[str, Metrics]:
    return {split: own for split, own in metrics.items() if split.startswith(RETAINED)}


def _stage_of(recipe: Recipe) -> str:
    return recipe.folder.name


def _table(stages: dict[str, Recipe], scores: Scores) -> Table:
    """Return the primary metric of each model on each stage's dev split and what is retained, as a table."""
    table = Table("model after", title="Dev scores after each stage", title_justify="left")
    retained = list(dict.fromkeys(split for row in scores.values() for split in _retained(row)))
    for name in (*stages, *retained):
        table.add_column(f"on {name.removeprefix(RETAINED)}", justify="right")
    for name, row in scores.items():
        cells = []
        for other in (*stages, *retained):
            metric = next(iter(row.get(other, {}).items()), None)
            cells.append("–" if metric is None else f"{metric[0].replace('_', ' ')} {metric[1]:,.2f}")
        table.add_row(name, *cells)
    return table


def _check_folder(folder: Path) -> None:
    """Refuse the folder of a single run."""
    if (folder / "recipe.yaml").is_file():
        raise UserError(f"run_dir: {folder} holds a single run, expected another folder for stages")


def _write(scores: Scores, path: Path) -> None:
    with whole_file(path) as partial_file:
        partial_file.write_text(json.dumps(scores, indent=1), encoding="utf-8")


def _say(text: str) -> None:
    if dist.get_rank() == 0:
        say_line(text)
