"""A process that times one source tree, for a parent that decides whose turn it is.

    PYTHONPATH=TREE/kernels:TREE/trainer:bench python -m fangyan_bench.harness.worker

Every line of its input is a JSON request, every line of its output the answer. What is declared in
``ops/`` and ``steps/`` is always this tree's, so that two trees are measured by the same code.
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

BENCH = Path(__file__).parents[2]


class WorkerError(Exception):
    """What a worker could not do, such as an op that an older tree does not have."""


class Worker:
    """Starts a worker on a source tree, and asks it; several may start side by side."""

    def __init__(self, tree: Path, environment: dict[str, str] | None = None):
        paths = [tree / "kernels", tree / "trainer", BENCH, os.environ.get("PYTHONPATH", "")]
        self._errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  (closed with the worker)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fangyan_bench.harness.worker"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._tree = tree.resolve()

    def ready(self) -> None:
        """Waits until it runs, and makes sure that it runs its own tree."""
        found = Path(self.ask("where"))
        if not found.is_relative_to(self._tree):
            raise RuntimeError(f"a worker of {self._tree} imports fangyan_kernels from {found}")

    def ask(self, request: str, **arguments: Any) -> Any:
        """The answer to a request.

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
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RemoteTrial:
    """A trial in a worker, with the methods of :class:`fangyan_bench.harness.timing.Trial`."""

    def __init__(self, worker: Worker, **what: Any):
        self._worker, self._what = worker, what
        worker.ask("open", of=what)

    def calibrate(self, pass_name: str) -> float:
        return float(self.ask("calibrate", pass_name=pass_name))

    def sample(self, pass_name: str) -> float:
        return float(self.ask("sample", pass_name=pass_name))

    def peak_memory(self) -> int:
        return int(self.ask("peak_memory"))

    def ask(self, method: str, **arguments: Any) -> Any:
        """The answer of the trial's own method."""
        return self._worker.ask(method, of=self._what, **arguments)

    def close(self) -> None:
        self.ask("close")


class _Server:
    """The worker's side: trials by what they are of."""

    def __init__(self) -> None:
        self._trials: dict[str, Any] = {}

    def answer(self, request: str, of: dict[str, str] | None = None, **arguments: Any) -> Any:
        if of is None:
            import fangyan_kernels

            return str(Path(fangyan_kernels.__file__).resolve())
        key = json.dumps(of)
        if request == "open":
            self._trials[key] = _open(**of)
            return None
        if request == "close":
            del self._trials[key]
            _empty_cache()
            return None
        return getattr(self._trials[key], request)(**arguments)


def _empty_cache() -> None:
    """Three workers share a GPU's memory: none keeps what it has freed."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _open(implementation: str, op: str = "", shape: str = "", step: str = "", recipe: str = "") -> Any:
    if step:
        from fangyan_bench.steps import open_step

        return open_step(step, implementation, recipe)
    from fangyan_bench.harness.check import check, expected
    from fangyan_bench.harness.registry import find_op, find_shape
    from fangyan_bench.harness.timing import Trial, input_sets

    declared = find_op(op)
    of_shape, who = find_shape(declared, shape), declared.implementation(implementation)
    check(who, expected(declared, of_shape))
    _empty_cache()
    return Trial(declared, of_shape, who, input_sets(declared, of_shape))


def _serve() -> None:
    # Libraries print: only answers may reach the parent.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    server = _Server()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"value": server.answer(**request)}
        except Exception as error:  # the parent says whose fault it is
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    _serve()
