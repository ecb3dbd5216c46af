"""Values and gradients before times: the error budget of every implementation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fangyan_kernels.testing.error_budget import error_budget, max_error
from torch import Tensor, nn

from fangyan_bench.harness.op import Implementation, Inputs, Op, Shape, leaves, make_inputs


class WrongValues(Exception):
    """An implementation computes something else; its times would mean nothing."""


def upstream_gradient(value: Tensor) -> Tensor:
    """Return the gradient that every backward starts from: one for a loss, fixed noise for a tensor."""
    if value.ndim == 0:
        return torch.ones_like(value)
    generator = torch.Generator(value.device).manual_seed(7)
    noise = torch.randn(value.shape, generator=generator, device=value.device)
    # The same values in every dtype: a generator draws others for each.
    return noise.bfloat16().to(value.dtype)


def evaluate(
    call: Callable[[], Any], inputs: Inputs, differentiable: bool, calls: int = 1
) -> dict[str, Tensor]:
    """Return the value of the last call, and the gradients of the inputs that have one."""
    params = leaves(inputs)
    for leaf in params:
        leaf.grad = None
    for _ in range(calls):
        value = call()
    results = {"value": value.detach().clone()}
    if differentiable:
        value.backward(upstream_gradient(value))
        for number, leaf in enumerate(params):
            assert leaf.grad is not None
            results[f"gradient {number}"] = leaf.grad.detach().clone()
            leaf.grad = None
    return results


def reference_results(op: Op, shape: Shape, seed: int) -> dict[str, Tensor]:
    """Evaluate the reference in float64, on the same values."""
    wide = tuple(_widen(value) for value in make_inputs(op, shape, seed))
    return evaluate(lambda: op.reference(*wide), wide, "backward" in op.passes)


def _widen(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    wide = value.detach().double()
    if isinstance(value, nn.Parameter):
        return nn.Parameter(wide, value.requires_grad)
    return wide.requires_grad_(value.requires_grad)


@dataclass(frozen=True)
class Expected:
    """What values are compared with, all of the same inputs.

    Attributes:
        op: whose results they are.
        shape: at which they were computed.
        seed: of the inputs.
        exact: value and gradients of the reference, in float64.
        plain: those of the baseline, in the shape's dtype.
    """

    op: Op
    shape: Shape
    seed: int
    exact: dict[str, Tensor]
    plain: dict[str, Tensor]


def expected(op: Op, shape: Shape, seed: int = 0) -> Expected:
    """Return the reference's and the baseline's results, at the sizes that the op is checked at."""
    shape = op.shape_to_check(shape)
    return Expected(
        op, shape, seed, reference_results(op, shape, seed), _results(op, shape, op.baseline, seed)
    )


def _results(op: Op, shape: Shape, implementation: Implementation, seed: int) -> dict[str, Tensor]:
    inputs = make_inputs(op, shape, seed)
    return evaluate(implementation.prepare(shape, inputs), inputs, "backward" in op.passes, op.calls_checked)


def check(implementation: Implementation, against: Expected) -> float:
    """Check that an implementation's error is at most twice the baseline's, plus one rounding step.

    Both are measured against float64, and the baseline's own is bounded. A gradient of zeros alone is wrong
    whatever its error: a peer has been timed with one.

    Returns:
        The largest error of a value or gradient, relative to the reference's norm.

    Raises:
        WrongValues: naming what differs, and by how much.
    """
    op = against.op
    found = _results(op, against.shape, implementation, against.seed)
    errors = []
    for name, exact in against.exact.items():
        value, plain = found[name].double(), against.plain[name]
        if value.shape != exact.shape:
            raise WrongValues(
                f"{implementation.name}: {name} has shape {tuple(value.shape)}, expected {tuple(exact.shape)}"
            )
        own = float((plain.double() - exact).norm() / exact.norm())
        if not own <= torch.finfo(plain.dtype).eps ** 0.5:  # 3e-4 in float32, 0.09 in bfloat16
            raise WrongValues(f"{op.baseline.name}: {name} is off by {own:.3g} of its norm")
        if not value.abs().sum() > 0:
            raise WrongValues(f"{implementation.name}: {name} is zero, expected {exact.norm():.3g} in norm")
        errors.append(float((value - exact).norm() / exact.norm()))
        if implementation.tolerance is not None:
            error, allowed = errors[-1], implementation.tolerance
        else:
            error = max_error(value, exact)
            allowed = error_budget(plain, exact, found[name].dtype)
        if not error <= allowed:
            raise WrongValues(
                f"{implementation.name}: {name} is off by {error:.3g}, expected {allowed:.3g} at most"
            )
    return max(errors)
