"""Every op that a file in ``ops/`` declares: adding one is adding a file."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

import fangyan_bench.ops as declarations
from fangyan_bench.harness.op import Implementation, Op, Shape


@cache
def _declared() -> tuple[dict[str, Op], dict[str, str]]:
    found: dict[str, Op] = {}
    missing: dict[str, str] = {}
    for entry in pkgutil.iter_modules(declarations.__path__):
        try:
            op = find_op(entry.name)
        except Exception as error:  # one that is broken costs the others nothing either
            missing[entry.name] = f"{type(error).__name__}: {error}"
        else:
            found[op.name] = op
    return found, missing


def ops() -> dict[str, Op]:
    """The declared ops by name, but for those of :func:`missing_ops`."""
    return _declared()[0]


def missing_ops() -> dict[str, str]:
    """By file, why an op cannot be declared, such as a package that is not installed: the others can."""
    return _declared()[1]


def find_op(name: str) -> Op:
    """One op, without importing the others.

    Raises:
        ImportError: if this machine or an older tree lacks what it needs.
    """
    declared: Op = importlib.import_module(f"fangyan_bench.ops.{name}").OP
    return declared


def shapes(op: Op, device: str, quick: bool) -> list[Shape]:
    """The shapes of an op for this device, or those of ``--quick``."""
    return [shape for shape in op.shapes if shape.device == device and (shape.quick or not quick)]


def implementations(op: Op, quick: bool) -> list[Implementation]:
    return [implementation for implementation in op.implementations if implementation.quick or not quick]


def find_shape(op: Op, text: str) -> Shape:
    return next(shape for shape in op.shapes if str(shape) == text)
