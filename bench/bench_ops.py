"""Every op of ``fangyan_bench/ops``: all implementations at every shape, values and gradients first."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fangyan_bench.harness.machine import device
from fangyan_bench.harness.op import ExpectedSpeedup, Op, Shape
from fangyan_bench.harness.replay import CLOCK
from fangyan_bench.harness.suite import Suite, scaling, slopes
from fangyan_bench.registry import missing_ops, ops

pytestmark = pytest.mark.benchmark(timer=CLOCK.read, warmup=False, disable_gc=False, cprofile=False)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test per row, per expected speed-up, and per dimension whose growth is fitted."""
    quick = metafunc.config.getoption("quick")
    if "pass_name" in metafunc.fixturenames:
        metafunc.parametrize(("op", "shape", "pass_name", "implementation"), _rows(quick))
    if "expected" in metafunc.fixturenames:
        metafunc.parametrize(("op", "shape", "expected"), _expected_speedups(quick))
    if "dim" in metafunc.fixturenames:
        dims = [(op.name, dim) for op in ops().values() for dim in op.scaling]
        metafunc.parametrize(("op", "dim"), [] if quick else dims)


def _rows(quick: bool) -> list[tuple[str, str, str, str]]:
    """Return op, shape, pass and implementation, all by name: pytest-benchmark stores parameters as JSON."""
    return [
        (op.name, str(shape), pass_name, implementation.name)
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


def test_op(
    op: str, shape: str, pass_name: str, implementation: str, suite: Suite, benchmark: BenchmarkFixture
) -> None:
    """Time an implementation that computes the right values."""
    declared = ops()[op]
    declared_shape, role = declared.shape(shape), declared.implementation(implementation).role
    measured = suite.op(declared, declared_shape)
    if implementation in measured.missing:
        pytest.skip(measured.missing[implementation])
    if implementation in measured.failed:
        # A peer that raises or computes something else is skipped and reported; all others fail.
        error = measured.failed[implementation]
        assert role == "peer", f"{implementation}: {error}"
        message = f"not timed, {op}, {shape}, {implementation}: {error}"
        if message not in suite.messages:
            suite.messages.append(message)
        pytest.skip(error)
    cost = declared.cost(declared_shape, pass_name)
    suite.record(
        benchmark,
        "op",
        measured.times[pass_name][implementation],
        op=op,
        shape=shape,
        **{"pass": pass_name},
        implementation=implementation,
        role=role,
        baseline=declared.baseline.name,
        ratio=suite.ratio(declared, declared_shape, pass_name, implementation),
        error=measured.errors.get(implementation),
        peak_memory=measured.peak_memory[implementation],
        first_call_seconds=measured.first_call_seconds[implementation],
        bytes=cost.bytes,
        flops=cost.flops,
        floor_seconds=suite.floor(declared, declared_shape, pass_name),
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


def test_scaling(op: str, dim: str, suite: Suite, benchmark: BenchmarkFixture) -> None:
    """Fit how cost grows with one dimension: an exponent of 1 is proportional, 0 is not at all."""
    declared = ops()[op]
    points = scaling(declared, declared.shapes_to_time(device(), quick=False)[0], dim)
    exponents = slopes(points)
    for name, exponent in exponents.items():
        suite.messages.append(f"{op} {declared.passes[-1]}, {name}: cost grows as {dim}^{exponent:.2f}")
        assert exponent < 1.25, f"{name} grows as {dim}^{exponent:.2f}, expected at most proportionally"
    baseline = [points[declared.baseline.name][-1][1]]
    suite.record(benchmark, "scaling", baseline, op=op, dim=dim, points=points, slopes=exponents)
