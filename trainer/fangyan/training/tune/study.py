"""The trials of a search, in a SQLite database that a kill at any moment leaves usable, and what to try next.

Values of a trial follow from the seed, its number and the trials before it alone, so that a search that was
interrupted tries what an undisturbed one does.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from fangyan.errors import UserError
from fangyan.training.tune.space import Space

# Trials that are never pruned: a median of fewer says little.
UNPRUNED = 5


@dataclass(frozen=True)
class Draw:
    """What to try next.

    Attributes:
        number: of the trial, from 0.
        values: by field.
    """

    number: int
    values: dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """What a trial has come to.

    Attributes:
        number: from 0.
        state: complete, pruned, or running.
        score: of its best epoch; None before the first.
        values: by field.
        epochs: the score of each.
        minutes: that it has taken, without those between an interruption and its resume.
        reason: why it was pruned before its time, or "".
    """

    number: int
    state: str
    score: float | None
    values: dict[str, Any]
    epochs: dict[int, float]
    minutes: float
    reason: str


class Study:
    """The database of a search.

    Args:
        path: of its file; an earlier search in it goes on.
        spaces: what is searched, by field.
        seed: of the draws.
        greater_is_better: whether scores are.

    Raises:
        UserError: if the file cannot be read or written.
    """

    def __init__(self, path: Path, spaces: Mapping[str, Space], seed: int, greater_is_better: bool):
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._path, self._spaces, self._seed = path, spaces, seed
        self._greater_is_better = greater_is_better
        with self._storing():
            # Not by a URL, in which some characters of a path mean something else.
            engine = {"creator": lambda: sqlite3.connect(path, timeout=60), "poolclass": sqlalchemy.NullPool}
            self._storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs=engine)
            self._study = optuna.create_study(
                study_name="tune",
                storage=self._storage,
                direction="maximize" if greater_is_better else "minimize",
                pruner=optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED),
                load_if_exists=True,
            )

    def close(self) -> None:
        """Let the file go."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def next(self, trials: int) -> Draw | None:
        """Return the trial that was interrupted, or else a new one; None if enough are over.

        Args:
            trials: how many are wanted.
        """
        with self._storing():
            found = self._study.get_trials(deepcopy=False)
            running = [trial for trial in found if trial.state == TrialState.RUNNING]
            if len(found) - len(running) >= trials:
                return None
            number = running[0].number if running else len(found)
            self._study.sampler = optuna.samplers.TPESampler(
                seed=zlib.crc32(f"{self._seed}/{number}".encode())
            )
            self._trial = optuna.Trial(self._study, running[0]._trial_id) if running else self._study.ask()
            values = {field: _suggest(self._trial, field, space) for field, space in self._spaces.items()}
        self._begun = time.monotonic()
        return Draw(number, values)

    def report(self, epoch: int, score: float) -> bool:
        """Take the score of an epoch of the latest trial; return whether it is worth going on."""
        with self._storing():
            if epoch not in self._study.trials[self._trial.number].intermediate_values:
                self._trial.report(score, epoch)
            self._keep_time()
            return not self._trial.should_prune()

    def finish(self, is_complete: bool, reason: str = "") -> None:
        """Take note that the latest trial is over: to its last epoch, or pruned."""
        with self._storing():
            self._keep_time()
            score = self._record(self._study.trials[self._trial.number]).score
            if is_complete and (score is None or not math.isfinite(score)):
                is_complete, reason = False, f"the score is {score}"
            if reason:
                self._trial.set_user_attr("reason", reason)
            if is_complete:
                self._study.tell(self._trial, score)
            else:
                self._study.tell(self._trial, state=TrialState.PRUNED)

    def trials(self) -> list[Trial]:
        """Return all trials by number."""
        with self._storing():
            return [self._record(trial) for trial in self._study.get_trials(deepcopy=False)]

    def best(self) -> Trial | None:
        """Return the complete trial with the best score, the first if there are several; None if none is."""
        return next((trial for trial in self.order(self.trials()) if trial.state == "complete"), None)

    def order(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return trials with the best first: complete ones, then pruned ones."""
        return sorted(trials, key=self._rank)

    def _rank(self, trial: Trial) -> tuple[bool, float, int]:
        worst = -math.inf if self._greater_is_better else math.inf
        score = worst if trial.score is None else trial.score
        return trial.state != "complete", -score if self._greater_is_better else score, trial.number

    def _keep_time(self) -> None:
        now = time.monotonic()
        seconds = self._trial.user_attrs.get("seconds", 0.0) + now - self._begun
        self._trial.set_user_attr("seconds", seconds)
        self._begun = now

    def _record(self, trial: FrozenTrial) -> Trial:
        epochs = dict(sorted(trial.intermediate_values.items()))
        scores = [score for score in epochs.values() if not math.isnan(score)]
        best = max if self._greater_is_better else min
        return Trial(
            number=trial.number,
            state=trial.state.name.lower(),
            score=best(scores) if scores else None,
            values={
                field: _decoded(trial.params[field], space)
                for field, space in self._spaces.items()
                if field in trial.params
            },
            epochs=epochs,
            minutes=trial.user_attrs.get("seconds", 0.0) / 60,
            reason=trial.user_attrs.get("reason", ""),
        )

    @contextmanager
    def _storing(self) -> Iterator[None]:
        """Say which file cannot be read or written."""
        try:
            yield
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, sqlite3.Error) as error:
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise UserError(
                f"{self._path}: the search cannot be kept there ({reason}); expected a database of fangyan "
                "tune, and room on its disk"
            ) from error


def _suggest(trial: optuna.Trial, field: str, space: Space) -> Any:
    """Return the trial's value, which is drawn the first time."""
    if space.kind == "choice":
        chosen = trial.suggest_categorical(field, [_encoded(value) for value in space.values])
        return _decoded(chosen, space)
    low, high = space.values
    if space.kind in ("int", "log_int"):
        return trial.suggest_int(field, low, high, log=space.is_log)
    return trial.suggest_float(field, low, high, log=space.is_log)


def _encoded(value: Any) -> Any:
    """Return a choice as the database keeps it: sections and lists as text."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


def _decoded(value: Any, space: Space) -> Any:
    if space.kind != "choice":
        return value
    return next(choice for choice in space.values if _encoded(choice) == value)
