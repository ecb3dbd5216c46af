"""The process behind :class:`fangyan_bench.harness.worker.Worker`: it measures whatever tree it imports.

    PYTHONPATH=TREE/kernels:TREE/trainer:bench python -m fangyan_bench.serve

What ``ops/`` and ``steps/`` declare is always this tree's, so that two trees are measured by the same code.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from fangyan_bench.harness.check import check, expected
from fangyan_bench.harness.steps import StepSpec
from fangyan_bench.harness.timing import Trial, input_sets
from fangyan_bench.registry import find_op


class Server:
    """Trials by what they are of, and the answers that they give."""

    def __init__(self) -> None:
        self._trials: dict[str, Any] = {}

    def answer(self, request: str, of: dict[str, Any] | None = None, **arguments: Any) -> Any:
        """Open or close a trial, call one of its methods, or say which tree is imported."""
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
    """Release freed memory: three workers share a GPU's."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _open(implementation: str, op: str = "", shape: str = "", step: dict[str, Any] | None = None) -> Any:
    if step:
        from fangyan_bench.steps import open_step

        return open_step(StepSpec.from_json(step), implementation)
    declared = find_op(op)
    selected = declared.implementation(implementation)
    check(selected, expected(declared, declared.shape(shape)))
    _empty_cache()
    return Trial(declared, declared.shape(shape), selected, input_sets(declared, declared.shape(shape)))


def _serve() -> None:
    # Libraries print: only answers may reach the parent.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    server = Server()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"value": server.answer(**request)}
        except Exception as error:  # the parent knows whose fault it is
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    _serve()
