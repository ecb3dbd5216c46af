"""Every op of ``fangyan_bench/ops``: all implementations at every shape, values and gradients first."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from fangyan_bench.harness.machine import device
from fangyan_bench.harness.op import ExpectedSpeedup, Implementation, Op, Shape
from fangyan_bench.harness.suite import Suite, scaling, slopes
from fangyan_bench.registry import missing_ops, ops


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    op: Op
    shape: Shape
    pass_name: str
    implementation: Implementation

    def __str__(self) -> str:
        return f"{self.op.name}-{self.shape}-{self.pass_name}-{self.implementation.name}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test per row, per expected speed-up, and per dimension whose growth is fitted."""
    quick = metafunc.config.getoption("quick")
    if "cell" in metafunc.fixturenames:
        metafunc.parametrize("cell", _cells(quick), ids=str)
    if "expected" in metafunc.fixturenames:
        metafunc.parametrize(("op", "shape", "expected"), _expected_speedups(quick))
    if "dim" in metafunc.fixturenames:
        metafunc.parametrize(("op", "shape", "dim"), [] if quick else _dims())


def _cells(quick: bool) -> list[Cell]:
    return [
        Cell(op, shape, pass_name, implementation)
        for op in ops().values()
        for shape in op.shapes_to_time(device(), quick)
        for pass_name in op.passes
        for implementation in op.implementations_to_time(quick)
    ]


def _expected_speedups(quick: bool) -> list[object]:
    return [
        pytest.param(
            op, shape, expected, id=f"{op.name}-{shape}-{expected.pass_name}-{expected.implementation}"
        )
        for op in ops().values()
        for shape in op.shapes_to_time(device(), quick)
        for expected in op.expected_speedups
        if str(shape).startswith(f"{expected.shape}-") and shape.quick
    ]


def _dims() -> list[object]:
    return [
        pytest.param(op, op.shapes_to_time(device(), quick=False)[0], dim, id=f"{op.name}-{dim}")
        for op in ops().values()
        for dim in op.scaling
    ]


def test_op(cell: Cell, suite: Suite) -> None:
    """Time an implementation that computes the right values."""
    op, shape, pass_name, name = cell.op, cell.shape, cell.pass_name, cell.implementation.name
    measured = suite.op(op, shape)
    if name in measured.missing:
        pytest.skip(measured.missing[name])
    if name in measured.failed:
        # A peer that raises or computes something else is skipped and reported; all others fail.
        assert cell.implementation.role == "peer", f"{name}: {measured.failed[name]}"
        message = f"not timed, {op.name}, {shape}, {name}: {measured.failed[name]}"
        if message not in suite.messages:
            suite.messages.append(message)
        pytest.skip(measured.failed[name])
    cost = op.cost(shape, pass_name)
    suite.record(
        "op",
        measured.times[pass_name][name],
        op=op.name,
        shape=str(shape),
        **{"pass": pass_name},
        implementation=name,
        role=cell.implementation.role,
        baseline=op.baseline.name,
        ratio=suite.ratio(op, shape, pass_name, name),
        error=measured.errors.get(name),
        peak_memory=measured.peak_memory[name],
        first_call_seconds=measured.first_call_seconds[name],
        bytes=cost.bytes,
        flops=cost.flops,
        floor_seconds=suite.floor(op, shape, pass_name),
    )


def test_ops_are_declared_unless_a_package_is_missing() -> None:
    """Report an op whose file needs a package that is not installed; any other error fails."""
    assert all(reason.startswith("ModuleNotFoundError") for reason in missing_ops().values()), missing_ops()
    if missing_ops():
        pytest.skip("; ".join(f"{name}: {reason}" for name, reason in missing_ops().items()))


def test_expected_speedup(op: Op, shape: Shape, expected: ExpectedSpeedup, suite: Suite) -> None:
    """Assert a ratio: ratios hold on any machine, absolute times only on their own."""
    name = expected.implementation
    measured = suite.op(op, shape)
    if name in measured.missing:
        pytest.skip(measured.missing[name])
    found = suite.ratio(op, shape, expected.pass_name, name)
    assert found is not None, f"{op.baseline.name} has no time: {measured.missing | measured.failed}"
    if found.median < expected.at_least:  # whatever ran beside it has probably ended by now
        found = suite.ratio_again(op, shape, expected.pass_name, name)
    assert found.median >= expected.at_least, (
        f"{name} is {found.median:.2f}x of {op.baseline.name}'s speed "
        f"({found.low:.2f}-{found.high:.2f}), expected {expected.at_least:.2f}x"
    )


def test_scaling(op: Op, shape: Shape, dim: str, suite: Suite) -> None:
    """Fit how cost grows with one dimension: an exponent of 1 is proportional, 0 is not at all."""
    points = scaling(op, shape, dim)
    exponents = slopes(points)
    for name, exponent in exponents.items():
        suite.messages.append(f"{op.name} {op.passes[-1]}, {name}: cost grows as {dim}^{exponent:.2f}")
        assert exponent < 1.25, f"{name} grows as {dim}^{exponent:.2f}, expected at most proportionally"
    baseline = [points[op.baseline.name][-1][1]]
    suite.record("scaling", baseline, op=op.name, dim=dim, points=points, slopes=exponents)
