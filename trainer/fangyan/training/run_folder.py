"""The folder of a run: whose it is, what it was started with, and where a resumed run begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fangyan.data.example import Splits
from fangyan.data.splits import write_examples
from fangyan.errors import UserError
from fangyan.recipe import Recipe, load_recipe
from fangyan.training.checkpoint import Checkpoints, read_state
from fangyan.training.distributed import on_rank_zero

# Fields that may differ where a run resumes: they change nothing that it computes.
_MAY_DIFFER = {
    "run_dir",
    "data.cache_dir",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
}


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        checkpoint: to resume from, or None.
        messages: for the user.
    """

    checkpoint: Path | None = None
    messages: tuple[str, ...] = ()


class RunFolder:
    """``runs/<name>``; every rank calls its methods together.

    Args:
        path: the folder.
        checkpoints: in it.
    """

    def __init__(self, path: Path, checkpoints: Checkpoints):
        self.path = path
        self.checkpoints = checkpoints
        self.model = path / "model"

    def find_start(self, recipe: Recipe, resume: str | Path | None) -> Start:
        """Return the checkpoint to resume from, if any, and messages for the user.

        Raises:
            UserError: if the checkpoint is damaged, or of another recipe or run folder.
        """
        if resume is None:
            return Start()
        return on_rank_zero(lambda: self._find_start(recipe, resume))

    def _find_start(self, recipe: Recipe, resume: str | Path) -> Start:
        messages: list[str] = []
        if str(resume) == "auto":
            checkpoint, warnings = self.checkpoints.newest()
            messages += [f"passed over: {warning}" for warning in warnings]
            if checkpoint is None:
                return Start(
                    None, (*messages, f"nothing to resume in {self.checkpoints.folder}: starting afresh")
                )
        else:
            checkpoint = Path(resume).resolve()
            if not checkpoint.is_dir():
                raise UserError(f"--resume {resume}: no such checkpoint, expected auto or a folder")
            if checkpoint.parent != self.checkpoints.folder.resolve():
                raise UserError(
                    f"--resume {resume}: a checkpoint of another run folder, expected one in "
                    f"{self.checkpoints.folder} (or run_dir={checkpoint.parents[1]})"
                )
        state = read_state(checkpoint)
        if not (self.path / "recipe.yaml").is_file():
            raise UserError(f"{self.path}: no recipe.yaml in it, expected that of the run to resume")
        check_same_recipe(recipe, self.path / "recipe.yaml")
        return Start(checkpoint, (*messages, f"resuming {checkpoint} at step {state.step}"))

    def claim(self) -> list[str]:
        """Move an earlier run out of the way: nothing finished is ever lost.

        Raises:
            UserError: if the folder holds files but no run.
        """
        return on_rank_zero(self._claim)

    def _claim(self) -> list[str]:
        folder = self.path
        if not folder.exists() or not any(folder.iterdir()):
            return []
        if not (folder / "recipe.yaml").is_file():
            raise UserError(f"run_dir: {folder} holds files but no run, expected an empty or a new folder")
        number = 1
        while folder.with_name(f"{folder.name}.{number}").exists():
            number += 1
        folder.rename(folder.with_name(f"{folder.name}.{number}"))
        return [f"the earlier run is kept as {folder}.{number}"]

    def write_inputs(self, recipe: Recipe, splits: Splits) -> None:
        """Write the recipe, and the splits that are scored: the folder can then be evaluated anywhere."""
        on_rank_zero(lambda: self._write_inputs(recipe, splits))

    def _write_inputs(self, recipe: Recipe, splits: Splits) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        for name in splits.keys() - {"train"}:
            write_examples(self.path / "splits" / f"{name}.jsonl", splits[name])
        partial = self.path / ".recipe.yaml"
        partial.write_text(recipe.to_yaml(), encoding="utf-8")
        partial.replace(self.path / "recipe.yaml")


def check_same_recipe(recipe: Recipe, path: Path) -> None:
    """Refuse to resume with another recipe than the run began with: nothing else would be exact."""
    old, new = (_flat(r.model_dump(mode="json")) for r in (load_recipe(path), recipe))
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
