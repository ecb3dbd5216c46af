"""What the page says of a run, from its folder alone."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fangyan.errors import UserError
from fangyan.ui import commands, jobs
from fangyan.ui.jobs import Job, Jobs
from fangyan.ui.recipes import RUNS
from fangyan.yaml_text import read_yaml

# Points of a curve, and lines of a log, that are shown.
_POINTS, _LINES = 400, 14
_STEPS = re.compile(r"; ([\d,]+) steps?$")
_BEST = "-best"
# What a best checkpoint is chosen by, where the run does not say: the primary metrics of the tasks.
_PRIMARY = ("joint_f1", "entity_f1", "macro_f1", "spearman", "f1", "token_accuracy", "character_perplexity")
_LESS_IS_BETTER = re.compile(r"perplexity|loss|bits")
_SILENT = (
    "It ended without a word, as when memory runs out or the machine is switched off. Resume goes on from "
    "the last checkpoint."
)
_STOPPED = "Stopped as you asked, with a checkpoint. Resume goes on from there."
_STOPPED_EARLY = "Stopped as you asked, before anything was learned."
_STATES = {"running": "Running", "stopped": "Stopped", "finished": "Finished", "failed": "Failed"}


@dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        path: its folder, relative to the page's.
        job: that the page has started in it, or None.
        state: running, stopped, finished or failed.
        sentence: why it failed, or how it stopped.
        has_begun: whether what is in the folder is of this job, and not of an earlier one.
    """

    path: Path
    job: Job | None
    state: str
    sentence: str | None
    has_begun: bool

    @property
    def label(self) -> str:
        """Return the state in a word."""
        return _STATES[self.state]

    @property
    def recipe(self) -> dict[str, Any]:
        """Return the run's recipe: its own, or until it has one that which it was started with."""
        path = self.path / "recipe.yaml"
        if self.job is not None and not self.has_begun:
            path = Path(self.job.arguments[1])
        with suppress(UserError, OSError):
            return read_yaml(path)
        return {}

    @property
    def task(self) -> str:
        """Return the name of its task."""
        task = self.recipe.get("task")
        return str(task.get("name", "")) if isinstance(task, dict) else ""

    @property
    def has_model(self) -> bool:
        """Return whether there is a model to try."""
        return (self.path / "model" / "config.json").is_file()

    @property
    def has_report(self) -> bool:
        """Return whether there is a report to read."""
        return (self.path / "report.html").is_file()

    @property
    def can_resume(self) -> bool:
        """Return whether it can go on."""
        return (
            self.state in ("stopped", "failed") and self.has_begun and (self.path / "recipe.yaml").is_file()
        )


def all_runs(jobs_here: Jobs) -> list[Run]:
    """Return the runs in the folder, the newest first."""
    paths = {Path(job.run) for job in jobs.known()}
    for recipe in (*RUNS.glob("*/recipe.yaml"), *RUNS.glob("*/*/recipe.yaml")):
        if not recipe.parent.name.endswith(".partial") and (recipe.parent / "metrics.jsonl").exists():
            paths.add(recipe.parent)
    found = [run_at(path, jobs_here) for path in paths if path.is_dir() or jobs.find(path)]
    return sorted(found, key=_age)


def _age(run: Run) -> float:
    times = [run.job.started] if run.job is not None else []
    for name in ("metrics.jsonl", "recipe.yaml"):
        with suppress(OSError):
            times.append((run.path / name).stat().st_mtime)
    return -max(times, default=0.0)


def run_at(path: Path, jobs_here: Jobs) -> Run:
    """Return a run.

    Raises:
        UserError: if there is none.
    """
    job = jobs.find(path)
    if job is None and not (path / "recipe.yaml").is_file():
        raise UserError(f"{path}: no such run")
    begun = job is None or "--resume" in job.arguments or _is_newer(path / "recipe.yaml", job.started)
    if jobs_here.process(path) is not None:
        return Run(path, job, "running", None, begun)
    model = path / "model" / "config.json"
    if model.is_file() and (job is None or _is_newer(model, job.started)):
        return Run(path, job, "finished", None, begun)
    if job is None:
        return Run(path, job, "stopped", None, begun)
    said = commands.sentence(commands.last_lines(job.output, 40))
    if job.stopped:
        return Run(path, job, "stopped", _STOPPED if _has_checkpoint(path) else _STOPPED_EARLY, begun)
    if said is not None and "the run ends" in said:  # by another's signal
        return Run(path, job, "stopped", said, begun)
    return Run(path, job, "failed", said or _SILENT, begun)


def _has_checkpoint(path: Path) -> bool:
    return (path / "checkpoints" / "last").exists()


def _is_newer(path: Path, moment: float) -> bool:
    try:
        return path.stat().st_mtime >= moment - 1.0  # file systems round
    except OSError:
        return False


class Paces:
    """How fast runs go, by when the page has seen them where."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[int, float, int, float]] = {}

    def seconds_left(self, path: Path, step: int, total: int | None, moment: float) -> float | None:
        """Return the seconds that a run's steps still take; None where that is not known yet.

        Args:
            path: of the run.
            step: that it has done.
            total: that it takes.
            moment: at which it had done them.
        """
        first, begun, last, _ = self._seen.get(path, (step, moment, step, moment))
        if step < last:  # it was started again
            first, begun = step, moment
        self._seen[path] = (first, begun, step, moment)
        if total is None or step <= first or moment <= begun:
            return None
        return (total - step) * (moment - begun) / (step - first)


def status(run: Run, paces: Paces) -> dict[str, Any]:
    """Return what the page shows of a run and asks for again and again, as JSON has it."""
    records = list(_records(run.path / "metrics.jsonl")) if run.has_begun else []
    losses = [(r["step"], r["loss"]) for r in records if r["kind"] == "train" and _is_number(r.get("loss"))]
    step = max((r["step"] for r in records if r["kind"] in ("train", "evaluation")), default=0)
    recipe = run.recipe
    total = _total_steps(run) if run.has_begun else None
    left = None
    if run.state == "running" and losses:
        left = paces.seconds_left(run.path, step, total, (run.path / "metrics.jsonl").stat().st_mtime)
    epochs = recipe.get("train", {}).get("epochs") if isinstance(recipe.get("train"), dict) else None
    speed: dict[str, Any] = next((r for r in reversed(records) if r["kind"] == "speed"), {})
    dev = _dev(records)
    return {
        "state": run.state,
        "label": run.label,
        "sentence": run.sentence,
        "step": step,
        "total": total,
        "epoch": max((r["epoch"] for r in records if r["kind"] == "evaluation"), default=0),
        "epochs": epochs,
        "seconds_left": left,
        "tokens_per_second": speed.get("tokens_per_second"),
        "memory_gb": speed.get("memory_gb"),
        "loss": thinned(losses, _POINTS),
        "dev": dev,
        "best": best(run, dev),
        "test": _test(records),
        "log": _log(run),
        "has_model": run.has_model,
        "has_report": run.has_report,
        "can_resume": run.can_resume,
        "now": time.time(),
    }


def best_of(run: Run) -> dict[str, Any] | None:
    """Return the best dev score of a run; see :func:`best`."""
    return best(run, _dev(_records(run.path / "metrics.jsonl"))) if run.has_begun else None


def best(run: Run, dev: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the primary metric's name and its best value on dev after an epoch; None before the first."""
    trained = [each["metrics"] for each in dev if each["step"] > 0]
    name, more_is_better = _metric(run, trained)
    values = [metrics[name] for metrics in trained if name in metrics]
    return {"name": name, "value": (max if more_is_better else min)(values)} if values else None


def _metric(run: Run, dev: list[dict[str, float]]) -> tuple[str, bool]:
    """Return which metric says what is better, and whether more of it is."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        facts = json.loads((run.path / "report" / "run.json").read_text(encoding="utf-8"))
        return str(facts["metric"]), bool(facts["greater_is_better"])
    names = list(dev[0]) if dev else [""]
    train = run.recipe.get("train")
    chosen = train.get("metric") if isinstance(train, dict) else None
    name = next((name for name in (chosen, *_PRIMARY) if name in names), names[0])
    name = next((each for each in names if each.endswith("perplexity")), name)
    return name, not _LESS_IS_BETTER.search(name)


def _dev(records: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the metrics of dev, by epoch."""
    return [
        {"epoch": r["epoch"], "step": r["step"], "metrics": _metrics(r)}
        for r in records
        if r["kind"] == "evaluation" and r.get("split") == "dev"
    ]


def _test(records: list[dict[str, Any]]) -> dict[str, float] | None:
    """Return the metrics of the best checkpoint on test, once the run has ended."""
    found = [r for r in records if r["kind"] == "evaluation" and r.get("split") == f"test{_BEST}"]
    return _metrics(found[-1]) if found else None


def _metrics(record: dict[str, Any]) -> dict[str, float]:
    named = {name: value for name, value in record.items() if name not in ("kind", "step", "epoch", "split")}
    return {name: float(value) for name, value in named.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a run, without a line that is still being written."""
    with suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, RecursionError):
                record = json.loads(line)
                if isinstance(record, dict) and all(
                    type(record.get(key)) is int for key in ("step", "epoch")
                ):
                    yield {"kind": "", **record}


def thinned(points: list[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """Return as many points as a curve shows: the mean of each few steps."""
    if len(points) <= most:
        return points
    width = -(-len(points) // most)
    groups = [points[i : i + width] for i in range(0, len(points), width)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _total_steps(run: Run) -> int | None:
    """Return how many steps a run takes, which its log says as it begins."""
    with suppress(OSError):
        for line in reversed(
            (run.path / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        ):
            match = _STEPS.search(line)
            if match:
                return int(match[1].replace(",", ""))
    return None


def _log(run: Run) -> list[str]:
    """Return the last lines of a run's log, or of what its command writes until there is one."""
    lines = commands.last_lines(run.path / "log.txt", _LINES) if run.has_begun else []
    return lines or (commands.last_lines(run.job.output, _LINES) if run.job is not None else [])
