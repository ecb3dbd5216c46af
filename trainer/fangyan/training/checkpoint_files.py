"""The files of a checkpoint: on the disk before they count, with digests, and read without running them."""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import CheckpointCommitInfo
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

import fangyan.device  # noqa: F401  before DeepSpeed, which would guess its device
from fangyan.errors import UserError
from fangyan.files import sync, whole_file
from fangyan.training.state import State

STATE = "state.json"
# What DeepSpeed's files hold besides tensors and plain values.
_CLASSES = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
_PIECE = 1 << 22


@dataclass(frozen=True)
class Digest:
    """What a file has to be.

    Attributes:
        size: bytes.
        sha256: of its content, in hexadecimal.
    """

    size: int
    sha256: str


@dataclass(frozen=True)
class Content:
    """What a checkpoint's ``state.json`` says.

    Attributes:
        state: of the run.
        files: digests by name.
    """

    state: State
    files: dict[str, Digest]

    def write(self, folder: Path) -> None:
        """Replace a folder's ``state.json``, in one step."""
        tree = {"state": asdict(self.state), "files": {name: asdict(d) for name, d in self.files.items()}}
        with whole_file(folder / STATE) as partial:
            partial.write_text(json.dumps({**tree, "sha256": _hash(tree)}, indent=1), encoding="utf-8")


def _hash(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def read_content(folder: Path) -> Content:
    """Return what a checkpoint says of itself.

    Raises:
        UserError: if ``state.json`` is missing or not as it was written.
    """
    try:
        tree = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if tree.pop("sha256") != _hash(tree):
            raise ValueError
        files = {name: Digest(**found) for name, found in tree["files"].items()}
        if any(Path(name).name != name for name in files):  # someone else's, of files that are elsewhere
            raise ValueError
        return Content(State(**tree["state"]), files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{folder}: not a whole checkpoint: {STATE} is missing or damaged") from None


def read_state(folder: Path) -> State:
    """Return the state of a checkpoint whose files have the sizes that they were written with.

    Raises:
        UserError: naming the first file that is missing or cut short.
    """
    content = read_content(folder)
    for name, expected in content.files.items():
        file = folder / name
        size = file.stat().st_size if file.is_file() else None
        if size != expected.size:
            what = "is missing" if size is None else f"has {size:,} bytes, expected {expected.size:,}"
            raise UserError(f"{folder}: the checkpoint is cut short: {name} {what}")
    return content.state


def verify(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, in one sentence; None if every byte is as it was written."""
    try:
        read_state(folder)
        for name, expected in read_content(folder).files.items():
            if digest(folder / name) != expected:
                return f"{folder}: the checkpoint is damaged: {name} is not as it was written"
    except UserError as error:
        return str(error)
    except OSError as error:  # of a disk that fails
        return f"{folder}: the checkpoint cannot be read: {error.filename or folder}: {error.strerror}"
    return None


def digest(path: Path) -> Digest:
    """Return the digest of a file."""
    found = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            found.update(piece)
            size += len(piece)
    return Digest(size, found.hexdigest())


def load(path: Path | str, map_location: Any = "cpu", mmap: bool = False) -> Any:
    """Return what a file of a checkpoint holds; nothing in it is run, whoever wrote it.

    Raises:
        UserError: if it holds anything but tensors, plain values and DeepSpeed's own classes.
    """
    if not zipfile.is_zipfile(path):  # as torch.save writes them; a plain pickle is not looked into
        raise UserError(f"{path}: not a file of a checkpoint, expected one that fangyan has written")
    try:
        with torch.serialization.safe_globals(_CLASSES):
            return torch.load(path, map_location=map_location, mmap=mmap, weights_only=True)
    except pickle.UnpicklingError as error:
        lines = (line.strip() for line in str(error).splitlines() if "GLOBAL" in line)
        raise UserError(
            f"{path}: it holds what no checkpoint does, and was not read ({next(lines, 'a pickle')[:200]}); "
            "expected one that fangyan has written"
        ) from None


class SafeCheckpointEngine(CheckpointEngine):  # type: ignore[misc]
    """What a DeepSpeed engine reads and writes its files with.

    A rank that fails to write goes on with the others, which would wait for it, and tells afterwards.

    Attributes:
        written: digests of what this rank has written since :meth:`start`, by path.
        error: why a file could not be written, or None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.name = type(self).__name__
        self.start()

    def start(self) -> None:
        """Forget earlier files."""
        self.written: dict[Path, Digest] = {}
        self.error: OSError | RuntimeError | None = None

    def create(self, info: CheckpointCommitInfo) -> None:
        """Do nothing: DeepSpeed says that a checkpoint begins."""

    def save(self, state_dict: Any, path: str) -> None:
        """Write a file, wait until it is on the disk, and take its digest."""
        if self.error is not None:
            return
        try:
            torch.save(state_dict, path)
            sync(Path(path))
            self.written[Path(path)] = digest(Path(path))
        except (OSError, RuntimeError) as error:
            self.error = error

    def load(self, path: str, map_location: Any = None) -> Any:
        """Return what a file holds."""
        return load(path, map_location)

    def commit(self, info: CheckpointCommitInfo) -> bool:  # noqa: ARG002
        """Do nothing: a checkpoint is whole once its folder is renamed."""
        return True
