"""TensorBoard: an event file in the run folder, written at once."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from typing_extensions import override

from fangyan.trackers.callback import Callback
from fangyan.trackers.tracker import TrackerConfig, scalars


class TensorBoard(TrackerConfig):
    """Event files in `tensorboard/` of the run folder: `tensorboard --logdir RUN`."""

    name: Literal["tensorboard"] = "tensorboard"
    module: ClassVar[str] = "tensorboard"
    package: ClassVar[str] = "tensorboard"

    @override
    def build(self) -> Callback:
        """Return what writes the file; see :class:`TrackerConfig`."""
        return TensorBoardFile()


class TensorBoardFile(Callback):
    """An event file of TensorBoard's.

    torch's ``SummaryWriter`` writes in a thread: a full disk is a traceback there, and a kill loses the rest.
    """

    @override
    def start(self, name: str, folder: Path, recipe: dict[str, Any], resumed: int | None) -> None:
        """Begin a file. TensorBoard hides what an earlier file has of steps that come again."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        board = folder / "tensorboard"
        board.mkdir(parents=True, exist_ok=True)
        file = f"events.out.tfevents.{time.time_ns() // 1000}.{socket.gethostname()}.{os.getpid()}"
        self._path = board / file
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if resumed is not None:
            session = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=resumed + 1, session_log=session))

    @override
    def metrics(self, kind: str, split: str, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Write values by their tags."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        # As torch.utils.tensorboard.summary.scalar has it.
        shown = [
            Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(kind, split, values).items()
        ]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=shown)))

    def _write(self, event: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        with self._path.open("ab") as file:
            RecordWriter(file).write(event.SerializeToString())
