"""A search: runs of one recipe with other values of some fields, the worst of which end early."""

from __future__ import annotations

import gc
import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from fangyan.config import short
from fangyan.device import reset_peak_memory
from fangyan.distributed.process_group import on_rank_zero, start_distributed
from fangyan.errors import Diverged, Stopped, UserError
from fangyan.files import REPEAT, whole_file, writing
from fangyan.recipe import Recipe, load_recipe
from fangyan.tasks.task import Metrics
from fangyan.terminal import parts, print_results, say_line
from fangyan.training.loaded_data import choose_metric, load_data
from fangyan.training.run_folder import check_same_recipe, is_empty
from fangyan.training.run_lock import RunLock
from fangyan.training.train import train
from fangyan.training.tune import report
from fangyan.training.tune.fields import check_spaces, trial_recipe
from fangyan.training.tune.report import TRIALS, show
from fangyan.training.tune.space import Space

if TYPE_CHECKING:
    from fangyan.training.tune.study import Draw, Study, Trial

# In a search's folder.
RECIPE, DATABASE = "tune.yaml", "study.db"
# In a trial's folder, what is kept of the best alone: all that is large.
_LARGE = ("checkpoints", "model", "base", "splits")


def tune(recipe: Recipe, trials: int) -> Trial:
    """Search for the values that give the best dev metric, and return the trial that has them.

    An interrupted search goes on where it was. The test split is neither scored nor, where it has files of
    its own, read.

    Args:
        recipe: with a section ``tune``.
        trials: how many in all, those of earlier calls included.

    Raises:
        UserError: naming a field that cannot be searched, or what is wrong with a trial.
    """
    spaces = check_spaces(recipe)
    _assert_installed()
    start_distributed()
    with Search(recipe, spaces) as search:
        while (draw := search.next(trials)) is not None:
            search.run(draw, trials)
        return search.finish()


def _assert_installed() -> None:
    if importlib.util.find_spec("optuna") is None:
        raise UserError(
            "fangyan tune needs the package optuna, which is not installed; run: pip install optuna"
        )


class Search:
    """The folder of a search: a database, and a run folder for each trial. Every rank calls its methods.

    Args:
        recipe: that is searched.
        spaces: its fields.
    """

    def __init__(self, recipe: Recipe, spaces: Mapping[str, Space]):
        self.recipe, self.spaces, self.folder = recipe, spaces, recipe.folder
        # On rank 0.
        self._studies: list[Study] = []
        self._locks: list[RunLock] = []

    def __enter__(self) -> Search:
        """Open the database, which no other search can use meanwhile.

        Raises:
            UserError: if the folder is not this search's.
        """
        on_rank_zero(self._check_folder)
        self.metric, greater_is_better = on_rank_zero(self._score)
        try:
            on_rank_zero(lambda: self._open(greater_is_better))
        except UserError:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let others have it."""
        if kind is Stopped:
            _say("the same command goes on with the search")
        self._close()

    def _close(self) -> None:
        for study in self._studies:
            study.close()
        for lock in self._locks:
            lock.release()

    @property
    def _study(self) -> Study:
        return self._studies[0]

    def _score(self) -> tuple[str, bool]:
        """Return the metric, and whether greater is better: the task knows, which is fitted to the data."""
        recipe = trial_recipe(self.recipe, {}, self.folder)
        task = load_data(recipe).task
        return choose_metric(recipe, task), task.greater_is_better

    def _check_folder(self) -> None:
        """Refuse a folder with anything but a search, and a search of another recipe."""
        folder, recipe = self.folder, self.folder / RECIPE
        if self._has_trials():
            check_same_recipe(self.recipe, recipe)
            _check_same_spaces(self.spaces, load_recipe(recipe).tune or {}, recipe)
        elif folder.is_dir() and not recipe.is_file() and not is_empty(folder):
            raise UserError(f"run_dir: {folder} holds files but no search, expected an empty or a new folder")

    def _has_trials(self) -> bool:
        """Return whether a trial has come to a checkpoint or to its end; before that, a recipe may change."""
        over, begun = self.folder / TRIALS, self.folder.glob("trial-*/checkpoints/last")
        return (self.folder / RECIPE).is_file() and (over.is_file() or any(begun))

    def _open(self, greater_is_better: bool) -> None:
        from fangyan.training.tune.study import Study

        with writing(self.folder, REPEAT):
            self._locks.append(RunLock(self.folder))
            if not self._has_trials():
                (self.folder / DATABASE).unlink(missing_ok=True)
        with whole_file(self.folder / RECIPE, REPEAT) as partial:
            partial.write_text(self.recipe.to_yaml(), encoding="utf-8")
        self._studies.append(Study(self.folder / DATABASE, self.spaces, self.recipe.seed, greater_is_better))

    def next(self, trials: int) -> Draw | None:
        """Return what to try next, the same on every rank; None if so many trials are over."""
        return on_rank_zero(lambda: self._next(trials))

    def _next(self, trials: int) -> Draw | None:
        self._tidy()
        return self._study.next(trials)

    def run(self, draw: Draw, trials: int) -> None:
        """Train with what was drawn, and keep the score.

        Args:
            draw: what to try.
            trials: how many are wanted, for the message.
        """
        shown = ", ".join(f"{field}={show(value)}" for field, value in draw.values.items())
        _say(f"trial {draw.number} ({draw.number + 1} of {trials}): {shown}")
        is_complete, reason = self._try(draw)
        gc.collect()  # an engine holds itself
        _say(on_rank_zero(lambda: self._finish(draw, is_complete, reason)))

    def _try(self, draw: Draw) -> tuple[bool, str]:
        """Return whether a trial came to its last epoch, and why it could not."""
        try:
            recipe = trial_recipe(self.recipe, draw.values, self._folder(draw.number))
        except UserError as error:  # each value is right, but not beside the others
            return False, str(error)
        try:
            return self._train(recipe), ""
        except Diverged as error:
            return False, str(error).partition(", expected")[0]
        except torch.OutOfMemoryError as error:
            if dist.get_world_size() > 1:  # the others wait for this one
                raise
            return False, str(error).splitlines()[0]

    def _train(self, recipe: Recipe) -> bool:
        """Run a trial, or the rest of it."""
        begun = on_rank_zero(lambda: _has_begun(recipe.folder))
        reset_peak_memory()
        with parts():
            result = train(recipe, "auto" if begun else None, on_epoch=self._on_epoch, score_test=False)
        return bool(result.after)

    def _on_epoch(self, epoch: int, dev: Metrics, /) -> bool:
        return on_rank_zero(lambda: self._study.report(epoch, dev[self.metric]))

    def _finish(self, draw: Draw, is_complete: bool, reason: str) -> str:
        self._study.finish(is_complete, reason)
        report.write_files(self.recipe, self._study, self.folder, self.metric)
        return report.outcome(draw.number, self._study, self.metric)

    def finish(self) -> Trial:
        """Write and print the report of all trials; return the best.

        Raises:
            UserError: if none came to its last epoch.
        """
        best = on_rank_zero(self._report)
        if best is None:
            raise UserError(
                f"tune: no trial of {self.folder} came to its last epoch, as {self.folder / TRIALS} says; "
                "expected values that train, such as smaller learning rates, and another run_dir"
            )
        return best

    def _report(self) -> Trial | None:
        self._tidy()
        best = self._study.best()
        if best is not None:
            report.plot(self._study, self.spaces, self.metric, self.folder / "tune.png")
            table = report.table(self._study, list(self.spaces), self.metric)
            folder = self._folder(best.number)
            print_results(table, f"the best trial's run: {folder}; its recipe: {self.folder}/best.yaml")
        return best

    def _tidy(self) -> None:
        """Delete what is large of all trials that are over, but for the best."""
        best = self._study.best()
        for trial in self._study.trials():
            if trial.state != "running" and (best is None or trial.number != best.number):
                for name in _LARGE:
                    shutil.rmtree(self._folder(trial.number) / name, ignore_errors=True)

    def _folder(self, number: int) -> Path:
        return self.folder / f"trial-{number:04d}"


def _check_same_spaces(new: Mapping[str, Space], old: Mapping[str, Space], path: Path) -> None:
    for field in (*new, *old):
        if new.get(field) != old.get(field):
            was, now = (
                short(space.model_dump() if space else None) for space in (old.get(field), new.get(field))
            )
            raise UserError(
                f"{path}: the search has tune.{field}={was}, the recipe {now}; expected the same to go on, "
                "or another run_dir"
            )


def _has_begun(folder: Path) -> bool:
    """Return whether a trial has a checkpoint; what was killed before that leaves nothing."""
    if (folder / "checkpoints" / "last").exists():
        return True
    shutil.rmtree(folder, ignore_errors=True)
    return False


def _say(text: str) -> None:
    if dist.get_rank() == 0:
        say_line(text)
