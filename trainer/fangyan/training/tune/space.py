"""What values a search tries for a field of the recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pydantic

from fangyan.config import Config, short

_NOTATION = (
    "{log: [1.0e-5, 1.0e-3]}, {uniform: [0.0, 0.3]}, {int: [2, 8]}, {log_int: [256, 4096]} or "
    "{choice: [a, b]}"
)


class Space(Config):
    """Values of one field: numbers between two bounds, which are among them, or a list to choose from.

    In a recipe it is a mapping of one key, the kind: ``{log: [1.0e-5, 1.0e-3]}``.
    """

    kind: Literal["uniform", "log", "int", "log_int", "choice"]
    values: tuple[Any, ...]

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_notation(cls, space: Any) -> Any:
        if not isinstance(space, dict) or len(space) != 1:
            raise ValueError(f"found {short(space)}, expected {_NOTATION}")
        ((kind, values),) = space.items()
        if kind not in _CHECKS or not isinstance(values, list):
            raise ValueError(f"found {short(space)}, expected {_NOTATION}")
        found = _CHECKS[kind](values)
        if kind.startswith("log") and found[0] <= 0:
            raise ValueError(f"found {short(space)}, expected bounds above 0 for {kind}")
        return {"kind": kind, "values": found}

    @pydantic.model_serializer
    def _notation(self) -> dict[str, list[Any]]:
        return {self.kind: list(self.values)}

    @property
    def is_log(self) -> bool:
        """Return whether numbers are drawn by their logarithm."""
        return self.kind in ("log", "log_int")


def _numbers(bounds: Sequence[Any]) -> tuple[Any, ...]:
    """Return two numbers."""
    if any(isinstance(bound, bool) or not isinstance(bound, int | float) for bound in bounds):
        raise ValueError(f"found {short(bounds)}, expected two numbers")
    return _in_order([float(bound) for bound in bounds], "numbers")


def _integers(bounds: Sequence[Any]) -> tuple[Any, ...]:
    """Return two whole numbers."""
    if any(isinstance(bound, bool) or not isinstance(bound, int) for bound in bounds):
        raise ValueError(f"found {short(bounds)}, expected two whole numbers")
    return _in_order(bounds, "whole numbers")


def _in_order(bounds: Sequence[Any], what: str) -> tuple[Any, ...]:
    if len(bounds) != 2 or not bounds[0] < bounds[1] < float("inf"):
        raise ValueError(f"found {short(bounds)}, expected two {what}, the smaller first")
    return tuple(bounds)


def _choices(values: Sequence[Any]) -> tuple[Any, ...]:
    """Return two values or more."""
    if len(values) < 2:
        raise ValueError(f"found {short(values)}, expected two values or more to choose from")
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"found {short(value)} twice, expected values that differ")
    return tuple(values)


# Of each kind, what checks its values.
_CHECKS: dict[str, Callable[[Sequence[Any]], tuple[Any, ...]]] = {
    "uniform": _numbers,
    "log": _numbers,
    "int": _integers,
    "log_int": _integers,
    "choice": _choices,
}
