"""Weights & Biases: its files in the run folder, and on its server where the run is online."""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from fangyan.errors import UserError
from fangyan.trackers.callback import Callback, Status
from fangyan.trackers.tracker import TrackerConfig, keep, read_kept, scalars

Name = Annotated[str, Field(pattern=r"^[^/\\#?%:\x00-\x1f\x7f]{1,128}$")]

# LevelDB's log format, which ".wandb" files are in, after a header: blocks, and records that do not cross
# their ends but in parts: checksum, length, type of part.
_HEADER, _BLOCK, _PART = 7, 1 << 15, struct.Struct("<IHB")
_LAST_PARTS = (1, 4)  # a whole record, and the last part of one


class Wandb(TrackerConfig):
    """Weights & Biases: a project on its server, or files in `wandb/` of the run folder for `wandb sync`."""

    name: Literal["wandb"] = "wandb"
    project: Name = Field("fangyan", description="Where the run is shown.")
    entity: Name | None = Field(None, description="Whose project it is; by default yours.")
    mode: Literal["online", "offline"] = Field(
        "online", description="offline: files alone, which `wandb sync RUN/wandb` uploads when you like."
    )
    module: ClassVar[str] = "wandb"
    package: ClassVar[str] = "wandb"

    @override
    def check(self) -> None:
        """Refuse to start without the package, or without a key for the server.

        Raises:
            UserError: if there is none: W&B would ask for one on a terminal.
        """
        super().check()
        if self.mode == "online" and not _wandb().login(prompt=False):
            raise UserError(
                "trackers: wandb: mode is online, but nobody is logged in to W&B; run: wandb login, or set "
                "mode: offline"
            )

    @override
    def build(self) -> Callback:
        """Return what follows a run; see :class:`TrackerConfig`."""
        return WandbRun(self)


class WandbRun(Callback):
    """A run of W&B's, whose rows are the lines of ``metrics.jsonl``, in their order.

    A run that resumes writes lines again; their rows are there already, and are left out.
    """

    def __init__(self, config: Wandb):
        self._config = config

    @override
    def start(self, name: str, folder: Path, recipe: dict[str, Any], resumed: int | None) -> None:
        """Begin the run, or go on with it: its id is kept in the run folder."""
        wandb, config = _wandb(), self._config
        key = str(read_kept(folder, config.name).get("id") or uuid.uuid4().hex)
        keep(folder, config.name, {"id": key})
        self._row, self._first = _count_lines(folder / "metrics.jsonl"), 1 + last_row(folder, key)
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            name=name,
            id=key,
            resume="allow",
            dir=folder,
            mode=config.mode,
            settings=wandb.Settings(
                silent=True,
                console="off",
                # Seconds between writes to the file: a kill loses what is not written.
                x_transaction_log_flush_interval=0.1,
            ),
        )
        self._run.config.update(recipe, allow_val_change=True)
        self._run.define_metric("*", step_metric="step")

    @override
    def metrics(self, kind: str, split: str, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Write a row. W&B itself leaves out those that its server has."""
        row, self._row = self._row, self._row + 1
        if row >= self._first:
            self._run.log({"step": step, **scalars(kind, split, values)}, step=row, commit=True)

    @override
    def end(self, status: Status, result: Mapping[str, Mapping[str, float]]) -> None:
        """Wait until everything is written, or with the server."""
        self._run.finish(exit_code=0 if status == "finished" else 1)


def _wandb() -> Any:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # to its makers, of its own errors
    import wandb

    return wandb


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def last_row(folder: Path, key: str) -> int:
    """Return the last row that the files of a run of W&B's have, counted from 0, or -1.

    Args:
        folder: the run folder.
        key: the run's id.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    last = -1
    for path in folder.glob(f"wandb/*-{key}/run-{key}.wandb"):
        for content in log_records(path.read_bytes()):
            record = Record.FromString(content)
            if record.HasField("history"):
                last = max(last, record.history.step.num)
    return last


def log_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a ``.wandb`` file; a last one that a kill has cut short is left out."""
    place, parts = _HEADER, b""
    while place + _PART.size <= len(data):
        room = _BLOCK - place % _BLOCK
        if room < _PART.size:  # the end of a block is empty
            place += room
            continue
        _, length, kind = _PART.unpack_from(data, place)
        place += _PART.size
        if place + length > len(data):
            return
        parts += data[place : place + length]
        place += length
        if kind in _LAST_PARTS:
            yield parts
            parts = b""
