"""Checkpoints that a kill, a full disk or a damaged file at any moment leaves usable.

``checkpoints/step-000120`` is written as ``step-000120.partial``, synced and renamed when whole; ``last`` and
``best`` are links, replaced in one system call. ``state.json`` holds the run's counters and a digest of every
file and of itself, so that a checkpoint that is cut short or damaged is known before it is loaded.

Where nodes do not see the same disk, each has whole checkpoints: files that another node's ranks wrote are
sent when a checkpoint is saved, and a node that lacks one gets it when a run resumes.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from fangyan.distributed.disks import Disks, one_disk
from fangyan.distributed.process_group import gathered, on_ranks
from fangyan.errors import RESUMING, UserError, free_space
from fangyan.files import sync, writing
from fangyan.training.checkpoint_files import (
    STATE,
    Content,
    Digest,
    SafeCheckpointEngine,
    read_content,
    read_state,
    verify,
)
from fangyan.training.reshard import reshard
from fangyan.training.state import State

_PARTIAL = ".partial"
_NAME = re.compile(r"step-(\d+)")


class Checkpoints:
    """The folder of a run's checkpoints. Every rank calls its methods together.

    Args:
        folder: ``runs/<name>/checkpoints``.
        keep: how many of the newest are kept, besides the best.
        trained_only: whether frozen weights, which the recipe loads again, are left out.
        disks: that the ranks have, by default one.
    """

    def __init__(self, folder: Path, keep: int, trained_only: bool = False, disks: Disks | None = None):
        self.folder = folder
        self.keep = keep
        self.trained_only = trained_only
        self.disks = disks or one_disk()
        self._pool = ThreadPoolExecutor(1)
        self._verified: dict[str, Future[str | None]] = {}

    def path(self, step: int) -> Path:
        """Return the checkpoint after a step."""
        return self.folder / f"step-{step:06d}"

    def assert_room(self, nbytes: int) -> None:
        """Refuse a disk that cannot take another checkpoint, before anything is trained.

        Args:
            nbytes: of a checkpoint, at least.
        """
        self._on_leaders(lambda: self._assert_room(nbytes))

    def _assert_room(self, nbytes: int) -> None:
        free = free_space(self.folder)
        if free < nbytes:
            raise UserError(
                f"{self.folder}: {free / 1e9:.2f} GB are free, expected {nbytes / 1e9:.2f} GB at least for a "
                "checkpoint"
            )

    # Writing.

    def save(self, engine: Any, state: State, adaptation: dict[str, Any]) -> None:
        """Write the engine, the state and the adaptation's.

        Raises:
            UserError: if a disk takes no more; earlier checkpoints stay as they are.
        """
        final = self.path(state.step)
        partial = final.with_name(final.name + _PARTIAL)
        files: SafeCheckpointEngine = engine.checkpoint_engine
        self._on_leaders(lambda: self._make(partial))
        files.start()
        engine.save_checkpoint(
            str(self.folder),
            tag=partial.name,
            save_latest=False,
            client_state={"adaptation": adaptation},
            exclude_frozen_parameters=self.trained_only,
        )
        try:
            self._raise_errors(partial, files.error)
            digests = self._share(partial, files.written)
            self._on_leaders(lambda: self._publish(partial, final, Content(state, digests)))
        except UserError:
            self._on_leaders(lambda: _remove(partial))
            raise

    def amend(self, state: State) -> None:
        """Replace the state of the checkpoint after its step, whose weights have been evaluated since."""
        self._on_leaders(lambda: self._amend(state))

    def _on_leaders(self, function: Callable[[], None]) -> None:
        def write() -> None:
            with writing(self.folder):
                function()

        on_ranks(self.disks.leaders, write)

    def _make(self, folder: Path) -> None:
        """Make a folder for a checkpoint, and remove what kills have left."""
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            for parent in (self.folder.parent, self.folder.parent.parent):
                sync(parent)
        for stale in self.folder.glob(f"step-*{_PARTIAL}"):
            _remove(stale)
        folder.mkdir()

    def _raise_errors(self, partial: Path, own: OSError | RuntimeError | None) -> None:
        """Raise on every rank what one could not write."""
        if own is not None and not _is_of_the_disk(own):
            raise own
        reason = None if own is None else " ".join(str(own).split())[:200]
        free = shutil.disk_usage(self.folder).free
        for rank, (found, host, left) in enumerate(gathered((reason, socket.gethostname(), free))):
            if found is not None:
                raise UserError(
                    f"{partial}: the checkpoint cannot be written by rank {rank} on {host} ({found}); "
                    f"{left / 1e9:.2f} GB are free there; the last whole checkpoint is "
                    f"{self._newest_name()}; after making room, {RESUMING} from it"
                )

    def _share(self, folder: Path, written: Mapping[Path, Digest]) -> dict[str, Digest]:
        """Give every disk the files that this and other ranks have written; return the digests of all."""
        own = {str(path.relative_to(folder)): found for path, found in written.items()}
        digests: dict[str, Digest] = {}
        owners: dict[str, int] = {}
        for rank, names in enumerate(gathered(own)):
            digests |= names
            owners |= dict.fromkeys(names, rank)
        self.disks.spread(folder, owners)
        return digests

    def _publish(self, partial: Path, final: Path, content: Content) -> None:
        content.write(partial)
        if final.exists():
            _remove(final)
        partial.rename(final)
        sync(self.folder)
        self._link("last", final)
        self._rotate(content.state)

    def _amend(self, state: State) -> None:
        path = self.path(state.step)
        content = read_content(path)
        # Its files may be of other ranks, if a run has been resumed there.
        replace(content, state=replace(state, ranks=content.state.ranks)).write(path)
        if state.best_step is not None:
            self._link("best", self.path(state.best_step))
        self._rotate(state)

    def _link(self, name: str, target: Path) -> None:
        temporary = self.folder / f".{name}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target.name)
        os.replace(temporary, self.folder / name)

    def _rotate(self, state: State) -> None:
        """Delete old checkpoints; later steps than the newest are of an abandoned or damaged past."""
        past = [path for path in self._all() if _step_of(path) <= state.step]
        kept = set(past[-self.keep :])
        if state.best_step is not None:
            kept.add(self.path(state.best_step))
        for path in self._all():
            if path not in kept:
                _remove(path)

    def _all(self) -> list[Path]:
        """Return the checkpoints on this disk, whole or not, the newest last; other names are ignored."""
        if not self.folder.is_dir():
            return []
        found = (path for path in self.folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())
        return sorted(found, key=_step_of)

    def _newest_name(self) -> str:
        newest = self._all()
        return str(newest[-1]) if newest else "none"

    # Reading.

    def newest(self, messages: list[str], before: Path | None = None) -> Path | None:
        """Return the newest checkpoint whose files are as long as they were, on any disk.

        Args:
            messages: gets one about each newer checkpoint that is passed over.
            before: a checkpoint than which an older one is wanted.
        """
        disks = on_ranks(self.disks.leaders, self._problems)
        names = sorted(
            {name for problems in disks for name in problems}, key=lambda name: _step_of(Path(name))
        )
        for name in reversed(names):
            path = self.folder / name
            if before is not None and _step_of(path) >= _step_of(before):
                continue
            found = [problems[path.name] for problems in disks if path.name in problems]
            if None in found:
                return path
            messages.append(f"passed over: {found[0]}")
        return None

    def _problems(self) -> dict[str, str | None]:
        """Return what is wrong with each checkpoint on this disk, by what is quick to see."""
        found: dict[str, str | None] = {}
        for path in self._all():
            try:
                read_state(path)
                found[path.name] = None
            except UserError as error:
                found[path.name] = str(error)
        return found

    def state(self, path: Path) -> State:
        """Return the state of a checkpoint that is on any disk.

        Raises:
            UserError: if it is cut short on each, or missing.
        """
        mistakes: list[str] = []
        for state, mistake in on_ranks(self.disks.leaders, lambda: _state_or_mistake(path)):
            if state is not None:
                return state
            mistakes.append(mistake)
        raise UserError(mistakes[0])

    def begin_to_verify(self, path: Path) -> None:
        """Read a checkpoint's files in the background, and compare them with their digests."""
        if self.disks.is_leader and path.name not in self._verified:
            self._verified[path.name] = self._pool.submit(verify, path)

    def problem(self, path: Path, messages: list[str]) -> str | None:
        """Return what is wrong with a checkpoint; None if a disk has it whole, of which the others get it.

        Args:
            path: of the checkpoint.
            messages: gets one about each disk that lacks it.
        """
        self.begin_to_verify(path)
        disks = on_ranks(
            self.disks.leaders, lambda: (self._verified.pop(path.name).result(), socket.gethostname())
        )
        reasons = [reason for reason, _ in disks]
        if None not in reasons:
            return reasons[0]
        source = reasons.index(None)
        messages += [
            f"{host} lacks a checkpoint, which {disks[source][1]} sends: {reason}"
            for reason, host in disks
            if reason is not None
        ]
        lacking = [leader for leader, reason in zip(self.disks.leaders, reasons, strict=True) if reason]
        if lacking:
            self._restore(path, self.disks.leaders[source], lacking)
        return None

    def _restore(self, path: Path, source: int, lacking: Sequence[int]) -> None:
        """Give a checkpoint to the disks that lack it."""
        partial = path.with_name(f"{path.name}-received{_PARTIAL}")
        names = on_ranks([source], lambda: [STATE, *read_content(path).files])[0]

        def begin() -> None:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

        def finish() -> None:
            if path.exists():
                _remove(path)
            partial.rename(path)
            sync(self.folder)
            whole = [self.folder / name for name, problem in self._problems().items() if problem is None]
            self._link("last", whole[-1])
            best = read_content(whole[-1]).state.best_step
            if best is not None and self.path(best).exists():
                self._link("best", self.path(best))

        on_ranks(lacking, begin)
        self.disks.spread(path, dict.fromkeys(names, source), partial, lacking)
        on_ranks(lacking, finish)

    def load(self, engine: Any, path: Path, sizes: Sequence[int]) -> tuple[State, dict[str, Any], list[str]]:
        """Load a checkpoint into the engine: weights, optimizer and schedule.

        Args:
            engine: of the same recipe.
            path: the checkpoint's folder; it has no :meth:`problem`.
            sizes: of the vectors that the optimizer steps on this rank.

        Returns:
            The state, the adaptation's, and a message if the checkpoint was of another number of ranks.

        Raises:
            UserError: if it is of another model, or holds anything that would have to be run.
        """
        state = read_content(path).state
        ranks = dist.get_world_size()
        if state.ranks == ranks or engine.zero_optimization_stage() == 0:
            return replace(state, ranks=ranks), self._load(engine, path), []
        # Should this be killed, the next save removes it.
        resharded = self.folder / f"{path.name}-for-{ranks}-ranks{_PARTIAL}"

        def begin() -> None:
            shutil.rmtree(resharded, ignore_errors=True)
            resharded.mkdir(parents=True)

        self._on_leaders(begin)
        written, error = self._reshard(path, resharded, sizes)
        self._raise_errors(resharded, error)
        self._share(resharded, dict.fromkeys(written, Digest(0, "")))
        adaptation = self._load(engine, resharded)
        dist.barrier()
        self._on_leaders(lambda: shutil.rmtree(resharded))
        message = (
            f"{path} is of {state.ranks} ranks: its weights and optimizer states were resharded for {ranks}"
        )
        return replace(state, ranks=ranks), adaptation, [message]

    def _reshard(
        self, path: Path, target: Path, sizes: Sequence[int]
    ) -> tuple[list[Path], OSError | RuntimeError | None]:
        try:
            return reshard(path, target, dist.get_rank(), sizes, dist.get_world_size()), None
        except (OSError, RuntimeError) as error:
            return [], error

    def _load(self, engine: Any, path: Path) -> dict[str, Any]:
        _, client_state = engine.load_checkpoint(
            str(path.parent), tag=path.name, load_module_strict=not self.trained_only
        )
        adaptation: dict[str, Any] = client_state.get("adaptation", {})
        return adaptation


# What torch.save's writer of zip files says where a write fails.
_OF_THE_WRITER = ("inline_container", "file write", "iostream error")


def _is_of_the_disk(error: OSError | RuntimeError) -> bool:
    return isinstance(error, OSError) or any(part in str(error) for part in _OF_THE_WRITER)


def _step_of(path: Path) -> int:
    return int(path.name.partition("-")[2])


def _state_or_mistake(path: Path) -> tuple[State | None, str]:
    try:
        return read_state(path), ""
    except UserError as error:
        return None, str(error)


def _remove(path: Path) -> None:
    """Delete a folder, or a file of that name; a kill on the way leaves no half of a checkpoint."""
    if path.name.endswith(_PARTIAL):
        doomed = path
    else:
        doomed = path.with_name(f"{path.name}-old{_PARTIAL}")
        path.rename(doomed)
    if doomed.is_dir() and not doomed.is_symlink():
        shutil.rmtree(doomed)
    else:
        doomed.unlink(missing_ok=True)
