"""The error budget: at most twice the error of plain PyTorch in the same dtype, plus one rounding step.

Both errors are measured against the same expression in float64. A fixed tolerance would either hide a kernel
that is worse than PyTorch, or fail one that is not. Bounds of this kind: Higham, "Accuracy and Stability of
Numerical Algorithms", 2nd edition, chapter 3.
"""

from __future__ import annotations

import torch
from torch import Tensor


def max_error(value: Tensor, exact: Tensor) -> float:
    """Return the largest absolute difference; NaN if there is one, and 0 for empty tensors."""
    return float((value.double() - exact).detach().abs().amax()) if exact.numel() else 0.0


def error_budget(
    plain: Tensor, exact: Tensor, dtype: torch.dtype, term_size: Tensor | float | None = None
) -> float:
    """Return the largest error that a value of ``dtype`` may have.

    Args:
        plain: the same expression in plain PyTorch, in the dtype under test.
        exact: the same expression in float64.
        dtype: whose rounding step is allowed.
        term_size: what that step is relative to: the largest absolute value of ``exact`` by default. Where
            terms cancel, pass the largest sum of absolute terms behind an element.
    """
    if term_size is None:
        term_size = max_error(exact, torch.zeros_like(exact))
    elif isinstance(term_size, Tensor):
        term_size = float(term_size.detach())
    return 2 * max_error(plain, exact) + torch.finfo(dtype).eps * term_size


def assert_within_error_budget(
    found: Tensor,
    plain: Tensor,
    exact: Tensor,
    name: str,
    dtype: torch.dtype | None = None,
    term_size: Tensor | float | None = None,
) -> None:
    """Check a value or gradient against its :func:`error_budget`.

    Args:
        found: the value under test.
        plain: see :func:`error_budget`.
        exact: see :func:`error_budget`.
        name: what the value is, for the message.
        dtype: whose rounding step is allowed; that of ``found`` by default.
        term_size: see :func:`error_budget`.

    Raises:
        AssertionError: naming the value, its shape or error, and what was expected.
    """
    if found.shape != exact.shape:
        raise AssertionError(f"{name} has shape {tuple(found.shape)}, expected {tuple(exact.shape)}")
    budget = error_budget(plain, exact, dtype or found.dtype, term_size)
    error = max_error(found, exact)
    if not error <= budget:
        raise AssertionError(f"{name} is off by {error:.3g}, expected {budget:.3g} at most")
