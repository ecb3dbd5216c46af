"""The folder of a run: whose it is, what it was started with, and where a resumed run begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from fangyan.data.example import Splits
from fangyan.data.splits import write_examples
from fangyan.distributed.process_group import on_ranks
from fangyan.errors import UserError
from fangyan.files import whole_file, writing
from fangyan.recipe import Recipe, load_recipe
from fangyan.suggestions import file_like
from fangyan.training.checkpoint import Checkpoints
from fangyan.training.run_lock import LOCK, RunLock
from fangyan.training.state import State

T = TypeVar("T")

# Fields that may differ where a run resumes: they change nothing that it computes.
_MAY_DIFFER = {
    "run_dir",
    "data.cache_dir",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.report",
    "trackers",
}


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        checkpoint: to resume from, or None.
        state: of the checkpoint.
        messages: for the user.
        may_be_older: whether an older checkpoint will do where this one is damaged.
    """

    checkpoint: Path | None = None
    state: State | None = None
    messages: tuple[str, ...] = ()
    may_be_older: bool = False


class RunFolder:
    """``runs/<name>``; every rank calls its methods together.

    Used as a context, no other run can use the folder meanwhile.

    Args:
        path: the folder.
        checkpoints: in it.
    """

    def __init__(self, path: Path, checkpoints: Checkpoints):
        self.path = path
        self.checkpoints = checkpoints
        self.model = path / "model"
        self._locks: list[RunLock] = []

    def __enter__(self) -> RunFolder:
        """Make the folder, and lock it.

        Raises:
            UserError: if another run has it.
        """
        self._on_leaders(self._lock)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let others have it."""
        for lock in self._locks:
            lock.release()

    def _lock(self) -> None:
        with writing(self.path):
            self._locks.append(RunLock(self.path))

    def _on_leaders(self, function: Callable[[], T]) -> list[T]:
        return on_ranks(self.checkpoints.disks.leaders, function)

    def find_start(self, recipe: Recipe, resume: str | Path | None) -> Start:
        """Return the checkpoint to resume from, if any, and messages for the user.

        Raises:
            UserError: if the checkpoint is cut short, or of another recipe or run folder.
        """
        if resume is None:
            return Start()
        messages: list[str] = []
        is_auto = str(resume) == "auto"
        checkpoint = self.checkpoints.newest(messages) if is_auto else self._named(resume)
        if checkpoint is None:
            messages.append(f"nothing to resume in {self.checkpoints.folder}: starting afresh")
            return Start(None, None, tuple(messages))
        state = self.checkpoints.state(checkpoint)
        if not any(self._on_leaders(lambda: self._is_run_of(recipe))):
            raise UserError(f"{self.path}: no recipe.yaml in it, expected that of the run to resume")
        self.checkpoints.begin_to_verify(checkpoint)
        return Start(checkpoint, state, tuple(messages), is_auto)

    def _named(self, resume: str | Path) -> Path:
        """Return the checkpoint that the user has named, maybe by a link: the first disk's that has one."""
        found = self._on_leaders(lambda: _resolved(Path(resume), self.checkpoints.folder))
        named = next((checkpoint for checkpoint in found if checkpoint is not None), None)
        if named is None:
            hint = file_like(resume)
            raise UserError(f"--resume {resume}: no such checkpoint, expected auto or a folder{hint}")
        folder, name = named
        if folder is not None:
            raise UserError(
                f"--resume {resume}: a checkpoint of another run folder, expected one in "
                f"{self.checkpoints.folder} (or run_dir={folder.parent})"
            )
        return self.checkpoints.folder / name

    def _is_run_of(self, recipe: Recipe) -> bool:
        if not (self.path / "recipe.yaml").is_file():
            return False
        check_same_recipe(recipe, self.path / "recipe.yaml")
        return True

    def undamaged(self, start: Start) -> tuple[Path, list[str]]:
        """Return the checkpoint to resume from, each byte as it was written, and messages for the user.

        Raises:
            UserError: if it is damaged, and no older one is there or will do.
        """
        assert start.checkpoint is not None
        path, messages = start.checkpoint, list[str]()
        while (problem := self.checkpoints.problem(path, messages)) is not None:
            if not start.may_be_older:
                raise UserError(problem)
            messages.append(f"passed over: {problem}")
            older = self.checkpoints.newest(messages, before=path)
            if older is None:
                raise UserError(
                    f"{problem}; no older one is there; expected train without --resume, which starts afresh "
                    "and keeps this run beside the new one"
                )
            path = older
        return path, messages

    def claim(self) -> list[str]:
        """Move an earlier run out of the way: nothing finished is ever lost.

        Raises:
            UserError: if the folder holds files but no run.
        """
        return self._on_leaders(self._claim)[0]

    def _claim(self) -> list[str]:
        folder = self.path
        if not folder.exists() or is_empty(folder):
            return []
        if not _is_run(folder):
            raise UserError(f"run_dir: {folder} holds files but no run, expected an empty or a new folder")
        number = 1
        while folder.with_name(f"{folder.name}.{number}").exists():
            number += 1
        kept = folder.with_name(f"{folder.name}.{number}")
        folder.rename(kept)
        if self._locks:
            self._lock()  # the new folder; the lock of the old one went with it
            (kept / LOCK).unlink()
        return [f"the earlier run is kept as {kept}"]

    def write_inputs(self, recipe: Recipe, splits: Splits) -> None:
        """Write the recipe, and the splits that are scored: the folder can then be evaluated anywhere."""
        self._on_leaders(lambda: self._write_inputs(recipe, splits))

    def _write_inputs(self, recipe: Recipe, splits: Splits) -> None:
        # First, since these make the folder a run's.
        with writing(self.path):
            (self.path / "splits").mkdir(parents=True, exist_ok=True)
        with whole_file(self.path / "recipe.yaml") as partial:
            partial.write_text(recipe.to_yaml(), encoding="utf-8")
        for name in splits.keys() - {"train"}:
            with whole_file(self.path / "splits" / f"{name}.jsonl") as partial:
                write_examples(partial, splits[name])


def _resolved(checkpoint: Path, folder: Path) -> tuple[Path | None, str] | None:
    """Return a checkpoint's folder, unless it is the one expected, and its name; None if there is none."""
    path = checkpoint.resolve()
    if not path.is_dir():
        return None
    return None if path.parent == folder.resolve() else path.parent, path.name


def is_empty(folder: Path) -> bool:
    """Return whether a folder has nothing but what a run makes at first: dotted names, empty folders."""
    names = (path for path in folder.iterdir() if not path.name.startswith("."))
    return all(path.is_dir() and not any(path.iterdir()) for path in names)


def _is_run(folder: Path) -> bool:
    """Return whether a run has begun in a folder: a recipe alone may be the user's own."""
    begun = any((folder / name).exists() for name in ("splits", "metrics.jsonl", "checkpoints", "model"))
    return begun and (folder / "recipe.yaml").is_file()


def check_same_recipe(recipe: Recipe, path: Path) -> None:
    """Refuse to resume with another recipe than the run began with: nothing else would be exact.

    What is searched by ``fangyan tune`` is no part of the run.
    """
    old, new = (_flat(r.model_dump(mode="json", exclude={"tune"})) for r in (load_recipe(path), recipe))
    for field in (*new, *old):
        if field not in _MAY_DIFFER and old.get(field) != new.get(field):
            raise UserError(
                f"{path}: the run has {field}={old.get(field)}, the recipe {new.get(field)}; expected the "
                "same to resume, or another run_dir"
            )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
