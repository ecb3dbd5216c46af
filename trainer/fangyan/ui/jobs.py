"""Trainings that the page has started: found again by whoever asks, also after the page has ended.

Each is a ``fangyan train`` in a session of its own. What is known of it is a small file in ``.fangyan-ui``,
with the process's number and start time: of a number that another process has by now, the time is another.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from fangyan.errors import UserError
from fangyan.files import whole_file, writing
from fangyan.training.run_lock import LOCK
from fangyan.ui import commands

HOME = Path(".fangyan-ui")
_REPEAT = "after making room, start it again"
# Seconds by which a process's start may be read differently once the machine's clock has been set. No machine
# hands out all other numbers in less.
_CLOCKS = 60.0


@dataclass(frozen=True)
class Job:
    """A training.

    Attributes:
        run: its folder, relative to the page's.
        arguments: of ``fangyan``.
        started: seconds since 1970.
        pid: of its process.
        created: when that process was, as the system has it.
        stopped: whether the user has asked it to end.
    """

    run: str
    arguments: list[str]
    started: float
    pid: int
    created: float
    stopped: bool = False

    @property
    def output(self) -> Path:
        """Return where what it writes is."""
        return _place(self.run, ".log")

    @property
    def command(self) -> str:
        """Return what repeats it in a terminal."""
        return shlex.join(["fangyan", *self.arguments])


class Jobs:
    """Starts, stops and finds trainings; one runs at a time.

    Of those that this process has started it takes the exit codes, without which they would stay as zombies.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, run: Path, arguments: list[str]) -> Job:
        """Start a training.

        Args:
            run: its folder.
            arguments: of ``fangyan``.

        Raises:
            UserError: if another runs, or the disk is full.
        """
        with self._lock:
            running = self.running()
            if running is not None:
                raise UserError(
                    f"{running} is being trained, expected one at a time: stop it, or wait until it ends"
                )
            with writing(HOME, _REPEAT):
                HOME.mkdir(exist_ok=True)
                (HOME / ".gitignore").write_text("*\n", encoding="utf-8")
                started = time.time()
                with _place(str(run), ".log").open("wb") as output:
                    child = commands.start(arguments, output)
            self._children[child.pid] = child
            job = Job(str(run), arguments, started, child.pid, psutil.Process(child.pid).create_time())
            _write(job)
            return job

    def stop(self, run: Path) -> None:
        """Ask a run to end with a checkpoint, whoever has started it.

        Raises:
            UserError: if it does not run.
        """
        with self._lock:
            process = self.process(run)
            if process is None:
                raise UserError(f"{run}: does not run, nothing to stop")
            job = find(run)
            if job is not None and job.pid == process.pid:
                _write(replace(job, stopped=True))
            os.kill(process.pid, signal.SIGTERM)

    def running(self) -> Path | None:
        """Return the folder of the run that the page has started and that has not ended."""
        return next((Path(job.run) for job in known() if self._process_of(job) is not None), None)

    def process(self, run: Path) -> psutil.Process | None:
        """Return the process that trains a run: started by a page, or by a terminal on this machine."""
        job = find(run)
        found = None if job is None else self._process_of(job)
        return found or _holder(run)

    def _process_of(self, job: Job) -> psutil.Process | None:
        child = self._children.get(job.pid)
        if child is not None and child.poll() is not None:
            del self._children[job.pid]
            return None
        return _process(job.pid, lambda created: abs(created - job.created) < _CLOCKS)


def find(run: Path) -> Job | None:
    """Return what a page has started in a folder, if it has."""
    return _read(_place(str(run), ".json"))


def known() -> list[Job]:
    """Return all that pages have started in this folder."""
    found = (_read(path) for path in sorted(HOME.glob("*.json")))
    return [job for job in found if job is not None]


def _process(pid: int, is_it: Callable[[float], bool]) -> psutil.Process | None:
    """Return a process that runs, by its number and when it was created."""
    try:
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE and is_it(process.create_time()):
            return process
    except (psutil.Error, ValueError):
        pass
    return None


def _holder(run: Path) -> psutil.Process | None:
    """Return the process that a run's lock names, if it still runs.

    The lock is not tried: whoever holds it for a moment keeps a run from beginning.
    """
    path = run / LOCK
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        if holder["host"] != socket.gethostname():
            return None
        locked = path.stat().st_mtime
        return _process(int(holder["pid"]), lambda created: created <= locked + _CLOCKS)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _place(run: str, ending: str) -> Path:
    # Names of runs may be long, and in any script.
    return HOME / (hashlib.sha256(run.encode()).hexdigest()[:16] + ending)


def _read(path: Path) -> Job | None:
    try:
        return Job(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write(job: Job) -> None:
    with whole_file(_place(job.run, ".json"), _REPEAT) as partial:
        partial.write_text(json.dumps(asdict(job)), encoding="utf-8")
