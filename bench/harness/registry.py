"""Every op that a file in ``ops/`` declares: adding one is adding a file."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

import ops as declarations
from harness.op import Contender, Op, Shape


@cache
def ops() -> dict[str, Op]:
    """The declared ops by name."""
    modules = [
        importlib.import_module(f"ops.{entry.name}") for entry in pkgutil.iter_modules(declarations.__path__)
    ]
    return {module.OP.name: module.OP for module in modules}


def op_called(name: str) -> Op:
    """One op, without importing the others: an older tree may lack what they need."""
    declared: Op = importlib.import_module(f"ops.{name}").OP
    return declared


def shapes(op: Op, device: str, quick: bool) -> list[Shape]:
    """The shapes of an op for this device, or those of ``--quick``."""
    return [shape for shape in op.shapes if shape.device == device and (shape.quick or not quick)]


def contenders(op: Op, quick: bool) -> list[Contender]:
    return [contender for contender in op.contenders if contender.quick or not quick]


def shape_called(op: Op, text: str) -> Shape:
    return next(shape for shape in op.shapes if str(shape) == text)
