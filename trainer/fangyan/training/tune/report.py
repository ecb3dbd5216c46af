"""What a search has found: files beside its trials, a table and a plot."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.markup import escape
from rich.table import Table

from fangyan.files import REPEAT, whole_file
from fangyan.recipe import Recipe
from fangyan.terminal import duration
from fangyan.training.tune.fields import best_recipe
from fangyan.training.tune.space import Space

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fangyan.training.tune.study import Study, Trial

# In a search's folder.
TRIALS = "trials.json"
# Trials in the table.
_SHOWN = 10


def write_files(recipe: Recipe, study: Study, folder: Path, metric: str) -> None:
    """Write ``trials.json`` with all trials so far, and ``best.yaml`` with the recipe of the best."""
    best = study.best()
    found = {
        "metric": metric,
        "best": None if best is None else best.number,
        "trials": [asdict(trial) for trial in study.trials()],
    }
    with whole_file(folder / TRIALS, REPEAT) as partial:
        partial.write_text(json.dumps(found, ensure_ascii=False, indent=1), encoding="utf-8")
    if best is not None:
        head = f"# Trial {best.number} of {folder}, the best on dev: {_of(metric, best.score)}\n"
        with whole_file(folder / "best.yaml", REPEAT) as partial:
            partial.write_text(head + best_recipe(recipe, best.values, folder / "best"), encoding="utf-8")


def outcome(number: int, study: Study, metric: str) -> str:
    """Return what a trial has come to, and which is the best so far."""
    trial, best = study.trials()[number], study.best()
    said = f"trial {number}: {trial.state}, {_of(metric, trial.score)}"
    if trial.reason:
        said += f" ({trial.reason})"
    if best is not None and best.number != number:
        said += f"; the best is trial {best.number}, {_of(metric, best.score)}"
    return said


def table(study: Study, fields: Sequence[str], metric: str) -> Table:
    """Return the best trials, the best first."""
    trials = study.order([trial for trial in study.trials() if trial.state != "running"])
    title = f"The best {_SHOWN} of {len(trials)} trials" if len(trials) > _SHOWN else "All trials"
    found = Table(title=title)
    short = [field.rpartition(".")[2] for field in fields]
    names = short if len(set(short)) == len(short) else fields
    for i, head in enumerate(("trial", metric.replace("_", " "), *names, "state", "time")):
        found.add_column(head, justify="left" if i == len(fields) + 2 else "right", overflow="fold")
    for trial in trials[:_SHOWN]:
        values = (escape(show(trial.values[field])) for field in fields)
        score = "" if trial.score is None else f"{trial.score:.2f}"
        found.add_row(str(trial.number), score, *values, trial.state, duration(60 * trial.minutes))
    return found


def show(value: Any) -> str:
    """Return a value as tables and messages have it: numbers rounded, all else as a recipe has it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=math.inf)
    return text.removesuffix("\n...\n").strip()


def plot(study: Study, spaces: Mapping[str, Space], metric: str, path: Path) -> None:
    """Draw the score of each trial, and by each field."""
    from matplotlib.figure import Figure

    trials = [trial for trial in study.trials() if math.isfinite(_score(trial))]
    width = min(3, 1 + len(spaces))
    height = math.ceil((1 + len(spaces)) / width)
    figure = Figure(figsize=(3.2 * width, 2.6 * height), layout="constrained")
    first, *others = figure.subplots(height, width, squeeze=False).flat
    _draw(first, trials, [trial.number for trial in trials], "trial", metric)
    complete = [trial for trial in trials if trial.state == "complete"]
    best = [_score(study.order(complete[: i + 1])[0]) for i in range(len(complete))]
    first.step([trial.number for trial in complete], best, where="post", color="tab:orange", label="best")
    first.xaxis.get_major_locator().set_params(integer=True)
    first.legend(fontsize="small")
    for axes, (field, space) in zip(others, spaces.items(), strict=False):
        values = [trial.values[field] for trial in trials]
        _draw(axes, trials, list(map(show, values)) if space.kind == "choice" else values, field, metric)
        if space.is_log:
            axes.set_xscale("log")
        elif space.kind == "int":
            axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in others[len(spaces) :]:
        axes.remove()
    with whole_file(path, REPEAT) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that its font lacks
        figure.savefig(partial, format="png", dpi=120)


def _draw(axes: Axes, trials: Sequence[Trial], places: Sequence[Any], label: str, metric: str) -> None:
    """Draw a point per trial: full where it came to its last epoch, a ring where it was pruned."""
    for state, fill in (("complete", "tab:blue"), ("pruned", "none")):
        chosen = [i for i, trial in enumerate(trials) if trial.state == state]
        points, scores = [places[i] for i in chosen], [_score(trials[i]) for i in chosen]
        axes.scatter(points, scores, 18, facecolors=fill, edgecolors="tab:blue", label=state)
    axes.set_xlabel(label)
    axes.set_ylabel(metric.replace("_", " "))


def _score(trial: Trial) -> float:
    return math.nan if trial.score is None else trial.score


def _of(metric: str, score: float | None) -> str:
    return (
        f"no {metric.replace('_', ' ')} yet" if score is None else f"{metric.replace('_', ' ')} {score:.2f}"
    )
