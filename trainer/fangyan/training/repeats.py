"""Several runs of one recipe, with other seeds or other parts of the data: mean and spread of metrics."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch.distributed as dist
from rich.table import Table

from fangyan.device import reset_peak_memory
from fangyan.distributed.process_group import on_rank_zero, start_distributed
from fangyan.errors import UserError
from fangyan.files import whole_file
from fangyan.inference.run_records import BEST, read_records
from fangyan.recipe import Recipe, parse_recipe
from fangyan.tasks.task import Metrics
from fangyan.terminal import parts, print_results, say_line
from fangyan.training.engine import choose_precision
from fangyan.training.run_folder import check_same_recipe
from fangyan.training.train import train


@dataclass(frozen=True)
class Summary:
    """Metrics of several runs.

    Attributes:
        runs: per run and split, of its best checkpoint.
        mean: per split.
        std: the sample standard deviation, per split.
    """

    runs: dict[str, dict[str, Metrics]]
    mean: dict[str, Metrics]
    std: dict[str, Metrics]

    def table(self) -> Table:
        """Return mean and spread as a table for a terminal."""
        table = Table("metric")
        for split in self.mean:
            table.add_column(split, justify="right")
        for name in next(iter(self.mean.values())):
            row = (f"{self.mean[split][name]:,.2f} ± {self.std[split][name]:,.2f}" for split in self.mean)
            table.add_row(name.replace("_", " "), *row)
        return table


def repeat(recipe: Recipe, seeds: int | None = None, folds: int | None = None) -> Summary:
    """Run a recipe several times, each in a folder inside the recipe's own, and sum up its metrics.

    Finished runs are kept, and one that was interrupted is resumed. ``summary.json`` has the metrics.

    Args:
        recipe: of every run, but for seed and fold.
        seeds: how many, counted from the recipe's own.
        folds: into how many parts train is cut, each the test split of one run; groups stay whole.

    Raises:
        UserError: naming a run that is of another recipe.
    """
    start_distributed()
    on_rank_zero(lambda: _check_folder(recipe.folder))
    found: dict[str, dict[str, Metrics]] = {}
    for name, one in variants(recipe, seeds, folds).items():
        metrics = on_rank_zero(partial(finished_metrics, one))
        if metrics is None:
            reset_peak_memory()
            _say(f"run {name} of {recipe.name}")
            begun = on_rank_zero(one.folder.is_dir)
            with parts():
                metrics = train(one, resume="auto" if begun else None).after
        else:
            _say(f"run {name} of {recipe.name} is finished, and kept")
        found[name] = metrics
    summary = summarize(found)
    on_rank_zero(lambda: show_summary(summary, recipe.name, recipe.folder))
    return summary


def show_summary(summary: Summary, name: str, folder: Path) -> None:
    """Write ``summary.json`` into a folder, and print the table."""
    _write(summary, folder / "summary.json")
    print_results(f"{name}: mean ± standard deviation of {len(summary.runs)} runs", summary.table())


def variants(recipe: Recipe, seeds: int | None, folds: int | None) -> dict[str, Recipe]:
    """Return the recipe of each run by the name of its folder, such as ``seed-0`` or ``fold-1``."""
    content = recipe.model_dump(mode="json")
    found = {}
    for seed, fold in product(range(seeds or 1), range(1, (folds or 1) + 1)):
        parts = [f"seed-{recipe.seed + seed}"] if seeds else []
        data = content["data"]
        if folds:
            parts.append(f"fold-{fold}")
            data = data | {"fold": f"{fold}/{folds}"}
        name = "-".join(parts)
        changed = {
            "seed": recipe.seed + seed,
            "data": data,
            "run_dir": os.path.join(".", recipe.folder, name),
        }
        found[name] = choose_precision(parse_recipe(content | changed))
    return found


def finished_metrics(recipe: Recipe) -> dict[str, Metrics] | None:
    """Return the metrics per split of a recipe's run, or None if it has not finished.

    Raises:
        UserError: if the run was of another recipe.
    """
    folder = recipe.folder
    if not all((folder / name).is_file() for name in ("model/config.json", "metrics.jsonl")):
        return None
    check_same_recipe(recipe, folder / "recipe.yaml")
    found: dict[str, Metrics] = {}
    for record in read_records(folder / "metrics.jsonl"):
        split = str(record.get("split", ""))
        if split.endswith(BEST):
            about = ("kind", "step", "epoch", "split")
            found[split.removesuffix(BEST)] = {
                name: value for name, value in record.items() if name not in about
            }
    return found or None


def summarize(runs: Mapping[str, Mapping[str, Metrics]]) -> Summary:
    """Return mean and sample standard deviation of the metrics of two runs or more."""
    mean: dict[str, Metrics] = {}
    std: dict[str, Metrics] = {}
    for split, metrics in next(iter(runs.values())).items():
        values = {name: [run[split][name] for run in runs.values()] for name in metrics}
        mean[split] = {name: statistics.fmean(column) for name, column in values.items()}
        std[split] = {name: statistics.stdev(column) for name, column in values.items()}
    return Summary({name: dict(run) for name, run in runs.items()}, mean, std)


def _check_folder(folder: Path) -> None:
    """Refuse the folder of a single run."""
    if (folder / "recipe.yaml").is_file():
        raise UserError(f"run_dir: {folder} holds a single run, expected another folder for several")


def _write(summary: Summary, path: Path) -> None:
    with whole_file(path) as partial:
        partial.write_text(json.dumps(asdict(summary), indent=1), encoding="utf-8")


def _say(text: str) -> None:
    if dist.get_rank() == 0:
        say_line(text)
