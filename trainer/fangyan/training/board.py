"""Scalars for TensorBoard, written at once."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import scalar


class Board:
    """An event file of TensorBoard's.

    torch's ``SummaryWriter`` writes in a thread: a full disk is a traceback there, and a kill loses the rest.

    Args:
        folder: for the file.
        first_step: of a run that resumes: TensorBoard hides what an earlier file has from here on.
    """

    def __init__(self, folder: Path, first_step: int | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 1000}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / name
        self._write([Event(wall_time=time.time(), file_version="brain.Event:2")])
        if first_step is not None:
            session = SessionLog(status=SessionLog.START)
            self._write([Event(wall_time=time.time(), step=first_step, session_log=session)])

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Write values by their tags."""
        now = time.time()
        self._write(
            [Event(wall_time=now, step=step, summary=scalar(tag, value)) for tag, value in values.items()]
        )

    def _write(self, events: list[Event]) -> None:
        with self._path.open("ab") as file:
            writer = RecordWriter(file)
            for event in events:
                writer.write(event.SerializeToString())
