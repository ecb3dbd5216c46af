"""Processes that measure one source tree each, for a parent that decides whose turn it is.

The parent's side; :mod:`fangyan_bench.serve` is the process's. Every line of its input is a JSON request,
every line of its output the answer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from fangyan_bench.harness.machine import BENCH


class WorkerError(Exception):
    """What a worker could not do, such as an op that an older tree does not have."""


class Worker:
    """A process that imports the kernels and the trainer of one source tree; several start side by side."""

    def __init__(self, tree: Path, environment: dict[str, str] | None = None):
        paths = [tree / "kernels", tree / "trainer", BENCH, os.environ.get("PYTHONPATH", "")]
        self._errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  (closed with the worker)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fangyan_bench.serve"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._tree = tree.resolve()

    def ready(self) -> None:
        """Wait until the process runs, and check that it imports its own tree.

        Raises:
            RuntimeError: if it imports another.
        """
        found = Path(self.ask("where"))
        if not found.is_relative_to(self._tree):
            raise RuntimeError(f"a worker of {self._tree} imports fangyan_kernels from {found}")

    def ask(self, request: str, **arguments: Any) -> Any:
        """Return the answer to a request.

        Raises:
            WorkerError: if the worker could not do it, or died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # it has died: there will be no answer
            self._process.stdin.write(json.dumps({"request": request, **arguments}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            last = self._errors.read().strip().splitlines()[-1:]
            raise WorkerError(f"{request}: the worker died with exit code {self._process.wait()}: {last}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{request}: {answer['error']}")
        return answer["value"]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def __enter__(self) -> Worker:
        """Return the worker itself, to be closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self.close()


class RemoteTrial:
    """A trial in a worker, with the methods of :class:`fangyan_bench.harness.timing.Trial`.

    Args:
        worker: where it runs.
        what: what it is of: ``op``, ``shape`` and ``implementation``, or ``step`` and ``implementation``.
    """

    def __init__(self, worker: Worker, **what: Any):
        self._worker, self._what = worker, what
        worker.ask("open", of=what)

    def calibrate(self, pass_name: str) -> float:
        """Choose how many calls make a sample; return the seconds that a sample takes."""
        return float(self.ask("calibrate", pass_name=pass_name))

    def sample(self, pass_name: str) -> float:
        """Return the seconds of one call."""
        return float(self.ask("sample", pass_name=pass_name))

    def peak_memory(self) -> int:
        """Return the bytes of one call; of an op, measured in a process of its own."""
        return int(self.ask("peak_memory"))

    def ask(self, method: str, **arguments: Any) -> Any:
        """Return the answer of one of the trial's own methods."""
        return self._worker.ask(method, of=self._what, **arguments)

    def close(self) -> None:
        """Free what the trial holds."""
        self.ask("close")
