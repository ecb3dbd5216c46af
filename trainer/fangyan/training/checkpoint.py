"""Checkpoints that a kill at any moment leaves usable.

``checkpoints/step-000120`` is written as ``step-000120.partial`` and renamed when whole; ``last``
and ``best`` are links, replaced in one system call. ``state.json`` holds the run's counters and the
size of every file, so that a checkpoint cut short is known before it is loaded.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from fangyan.errors import UserError
from fangyan.training.reshard import reshard

_PARTIAL = ".partial"


@dataclass
class State:
    """Where a run is; with the seed and the recipe it determines everything to come.

    Attributes:
        step: optimizer steps done.
        epoch: complete epochs.
        step_in_epoch: steps done of the next one.
        ranks: that the run has.
        best_score: the primary metric of the best epoch, signed so that more is better.
        best_step: steps done at its end.
        epochs_without_gain: since then.
        before: metrics before training, per split.
        finished: whether early stopping has ended the run.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    ranks: int = 1
    best_score: float | None = None
    best_step: int | None = None
    epochs_without_gain: int = 0
    before: dict[str, dict[str, float]] = field(default_factory=dict)
    finished: bool = False

    def end_epoch(self, score: float, patience: int | None) -> bool:
        """Advance to the next epoch; return whether this one scored best.

        Args:
            score: of the epoch, more is better.
            patience: epochs without a better one that end the run, or None.
        """
        best = self.best_score is None or math.isnan(self.best_score) or score > self.best_score
        if best:
            self.best_score, self.best_step, self.epochs_without_gain = score, self.step, 0
        else:
            self.epochs_without_gain += 1
        self.epoch += 1
        self.step_in_epoch = 0
        self.finished = patience is not None and self.epochs_without_gain >= patience
        return best


class Checkpoints:
    """The folder of a run's checkpoints. Every rank calls its methods together.

    Args:
        folder: ``runs/<name>/checkpoints``.
        keep: how many of the newest are kept, besides the best.
        trained_only: whether frozen weights, which the recipe loads again, are left out.
    """

    def __init__(self, folder: Path, keep: int, trained_only: bool = False):
        self.folder = folder
        self.keep = keep
        self.trained_only = trained_only

    def save(self, engine: Any, state: State, adaptation: dict[str, Any], best: bool = False) -> None:
        """Write the engine, the state and the adaptation's; with ``best`` also link ``best`` to them.

        Raises:
            UserError: if the disk takes no more; earlier checkpoints stay as they are.
        """
        name = f"step-{state.step:06d}"
        partial = self.folder / (name + _PARTIAL)
        if dist.get_rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in self.folder.glob(f"*{_PARTIAL}"):
                shutil.rmtree(stale)
        dist.barrier()
        try:
            engine.save_checkpoint(
                str(self.folder),
                tag=partial.name,
                save_latest=False,
                client_state={"adaptation": adaptation},
                exclude_frozen_parameters=self.trained_only,
            )
            dist.barrier()
            if dist.get_rank() == 0:
                self._publish(partial, self.folder / name, state, best)
        except (OSError, RuntimeError) as error:
            if dist.get_rank() == 0:
                shutil.rmtree(partial, ignore_errors=True)
            if not _is_of_the_disk(error):
                raise
            free = shutil.disk_usage(self.folder).free
            raise UserError(
                f"{partial}: the checkpoint cannot be written ({' '.join(str(error).split())[:200]}); "
                f"{free / 1e9:.2f} GB are free; the last whole checkpoint is {self._newest_name()}",
                on_every_rank=False,
            ) from error
        dist.barrier()

    def _publish(self, partial: Path, final: Path, state: State, best: bool) -> None:
        sizes = {
            str(p.relative_to(partial)): p.stat().st_size for p in sorted(partial.rglob("*")) if p.is_file()
        }
        content = json.dumps({"state": asdict(state), "sizes": sizes}, indent=1)
        (partial / "state.json").write_text(content, encoding="utf-8")
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        self._link("last", final)
        if best:
            self._link("best", final)
        self._rotate(state.step)

    def _link(self, name: str, target: Path) -> None:
        temporary = self.folder / f".{name}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target.name)
        os.replace(temporary, self.folder / name)

    def _rotate(self, step: int) -> None:
        """Delete old checkpoints; later steps than the newest are of an abandoned or damaged past."""
        best = self.folder / "best"
        past = [path for path in self._all() if _step_of(path) <= step]
        names = {path.name for path in past[-self.keep :]} | (
            {best.resolve().name} if best.exists() else set()
        )
        for path in self._all():
            if path.name not in names:
                shutil.rmtree(path)

    def _all(self) -> list[Path]:
        return sorted((p for p in self.folder.glob("step-*") if not p.name.endswith(_PARTIAL)), key=_step_of)

    def _newest_name(self) -> str:
        newest = self._all()
        return str(newest[-1]) if newest else "none"

    def newest(self) -> tuple[Path | None, list[str]]:
        """Return the newest whole checkpoint, and a warning for each newer one that is not whole."""
        warnings = []
        for path in reversed(self._all()):
            try:
                read_state(path)
            except UserError as error:
                warnings.append(str(error))
                continue
            return path, warnings
        return None, warnings

    def load(self, engine: Any, path: Path, sizes: Sequence[int]) -> tuple[State, dict[str, Any], list[str]]:
        """Load a checkpoint into the engine: weights, optimizer and schedule.

        Args:
            engine: of the same recipe.
            path: the checkpoint's folder.
            sizes: of the vectors that the optimizer steps on this rank.

        Returns:
            The state, the adaptation's, and a message if the checkpoint was of another number of ranks.

        Raises:
            UserError: if it is cut short, or of another model.
        """
        path = path.resolve()
        state = read_state(path)
        ranks = dist.get_world_size()
        if state.ranks == ranks or engine.zero_optimization_stage() == 0:
            return replace(state, ranks=ranks), self._load(engine, path), []
        # Should this be killed, the next save removes it.
        resharded = self.folder / f"{path.name}-for-{ranks}-ranks{_PARTIAL}"
        if dist.get_rank() == 0:
            shutil.rmtree(resharded, ignore_errors=True)
            resharded.mkdir(parents=True)
        dist.barrier()
        reshard(path, resharded, dist.get_rank(), sizes, ranks)
        dist.barrier()
        adaptation = self._load(engine, resharded)
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.rmtree(resharded)
        message = (
            f"{path} is of {state.ranks} ranks: its weights and optimizer states were resharded for {ranks}"
        )
        return replace(state, ranks=ranks), adaptation, [message]

    def _load(self, engine: Any, path: Path) -> dict[str, Any]:
        _, client_state = engine.load_checkpoint(
            str(path.parent), tag=path.name, load_module_strict=not self.trained_only
        )
        adaptation: dict[str, Any] = client_state.get("adaptation", {})
        return adaptation


def _is_of_the_disk(error: OSError | RuntimeError) -> bool:
    """Return whether a write failed; torch.save raises a RuntimeError of its zip writer then."""
    return isinstance(error, OSError) or "inline_container" in str(error) or "file write" in str(error)


def _step_of(path: Path) -> int:
    return int(path.name.partition("-")[2])


def read_state(path: Path) -> State:
    """Return the state of a checkpoint whose files are all complete.

    Raises:
        UserError: naming the first file that is missing or cut short.
    """
    try:
        content = json.loads((path / "state.json").read_text(encoding="utf-8"))
        state, sizes = State(**content["state"]), content["sizes"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a whole checkpoint: state.json is missing or damaged") from None
    for name, size in sizes.items():
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found:,} bytes, expected {size:,}"
            raise UserError(f"{path}: the checkpoint is cut short: {name} {what}")
    return state
