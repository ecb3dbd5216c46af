"""Every op that a file in ``ops/`` declares: adding an op is adding a file."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

import fangyan_bench.ops as declarations
from fangyan_bench.harness.op import Op


@cache
def _declared() -> tuple[dict[str, Op], dict[str, str]]:
    declared: dict[str, Op] = {}
    missing: dict[str, str] = {}
    for entry in pkgutil.iter_modules(declarations.__path__):
        try:
            op = find_op(entry.name)
        except Exception as error:  # the other ops can be measured all the same
            missing[entry.name] = f"{type(error).__name__}: {error}"
        else:
            declared[op.name] = op
    return declared, missing


def ops() -> dict[str, Op]:
    """Return the declared ops by name, without those of :func:`missing_ops`."""
    return _declared()[0]


def missing_ops() -> dict[str, str]:
    """Return, by file, why an op cannot be declared here, such as a package that is not installed."""
    return _declared()[1]


def find_op(name: str) -> Op:
    """Return one op without importing the others.

    Raises:
        ImportError: if this machine or an older tree lacks what the op needs.
    """
    op: Op = importlib.import_module(f"{declarations.__name__}.{name}").OP
    return op
