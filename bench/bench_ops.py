"""Every op of ``ops/``: all implementations at every shape, values and gradients first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from fangyan_bench.harness.machine import device
from fangyan_bench.harness.op import ExpectedSpeedup, Implementation, Op, Shape
from fangyan_bench.harness.registry import implementations, missing_ops, ops, shapes
from fangyan_bench.harness.suite import Suite, recorded_time, replay, scaling, slopes


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
    quick = metafunc.config.getoption("quick")
    settings = [(op, shape) for op in ops().values() for shape in shapes(op, device(), quick)]
    if "cell" in metafunc.fixturenames:
        cells = [
            Cell(op, shape, pass_name, implementation)
            for op, shape in settings
            for pass_name in op.passes
            for implementation in implementations(op, quick)
        ]
        metafunc.parametrize("cell", cells, ids=str)
    if "claim" in metafunc.fixturenames:
        claims = [
            pytest.param(op, shape, claim, id=f"{op.name}-{shape}-{claim.pass_name}-{claim.implementation}")
            for op, shape in settings
            for claim in op.claims
            if str(shape).startswith(f"{claim.shape}-") and shape.quick
        ]
        metafunc.parametrize(("op", "shape", "claim"), claims)
    if "dim" in metafunc.fixturenames:
        lines = [
            pytest.param(op, shapes(op, device(), False)[0], dim, id=f"{op.name}-{dim}")
            for op in ops().values()
            for dim in op.scaling
        ]
        metafunc.parametrize(("op", "shape", "dim"), [] if quick else lines)


@pytest.mark.benchmark(timer=recorded_time)
def test_op(cell: Cell, suite: Suite, benchmark: Any) -> None:
    measured = suite.op(cell.op, cell.shape)
    name = cell.implementation.name
    if name in measured.missing:
        benchmark.skipped = True
        pytest.skip(measured.missing[name])
    if name in measured.failed:
        benchmark.skipped = True
        # What a peer raises or gets wrong is the peer's to mend, and it is said; all else is ours.
        assert cell.implementation.role == "peer", f"{name}: {measured.failed[name]}"
        said = f"not timed, {cell.op.name}, {cell.shape}, {name}: {measured.failed[name]}"
        if said not in suite.lines:
            suite.lines.append(said)
        pytest.skip(measured.failed[name])
    found = suite.ratio(cell.op, cell.shape, cell.pass_name, name)
    cost = cell.op.cost(cell.shape, cell.pass_name)
    benchmark.group = f"{cell.op.name}, {cell.shape}, {cell.pass_name}"
    benchmark.extra_info.update(
        kind="op",
        op=cell.op.name,
        shape=str(cell.shape),
        **{"pass": cell.pass_name},
        implementation=name,
        role=cell.implementation.role,
        baseline=cell.op.baseline.name,
        ratio=found.as_dict() if found else None,
        error=measured.errors.get(name),
        peak_memory=measured.peak_memory[name],
        first_call_seconds=measured.first_call_seconds[name],
        bytes=cost.bytes,
        flops=cost.flops,
        floor_seconds=suite.floor(cell.op, cell.shape, cell.pass_name),
    )
    replay(benchmark, measured.times[cell.pass_name][name])


def test_every_op_is_here() -> None:
    """Declared in a file, and not importable for want of a package: it is said, and the others are timed."""
    assert all(reason.startswith("ModuleNotFoundError") for reason in missing_ops().values()), missing_ops()
    if missing_ops():
        pytest.skip("; ".join(f"{name}: {reason}" for name, reason in missing_ops().items()))


def test_claim(op: Op, shape: Shape, claim: ExpectedSpeedup, suite: Suite) -> None:
    """Ratios alone: they hold on any machine, absolute times on none but their own."""
    measured = suite.op(op, shape)
    if claim.implementation in measured.missing:
        pytest.skip(measured.missing[claim.implementation])
    found = suite.ratio(op, shape, claim.pass_name, claim.implementation)
    assert found is not None, f"{op.baseline.name} has no time: {measured.missing | measured.failed}"
    if found.median < claim.at_least:  # whatever ran beside it is likely to be gone by now
        found = suite.ratio_again(op, shape, claim.pass_name, claim.implementation)
    assert found.median >= claim.at_least, (
        f"{claim.implementation} is {found.median:.2f}x of {op.baseline.name}'s speed "
        f"({found.low:.2f}-{found.high:.2f}), expected {claim.at_least:.2f}x"
    )


@pytest.mark.benchmark(timer=recorded_time)
def test_scaling(op: Op, shape: Shape, dim: str, suite: Suite, benchmark: Any) -> None:
    """How cost grows with one dimension: 1 is in proportion, 0 not at all."""
    points = scaling(op, shape, dim)
    exponents = slopes(points)
    for name, exponent in exponents.items():
        suite.lines.append(f"{op.name} {op.passes[-1]}, {name}: cost grows as {dim}^{exponent:.2f}")
        assert exponent < 1.25, f"{name} grows as {dim}^{exponent:.2f}, expected in proportion at most"
    benchmark.group = f"{op.name}, scaling with {dim}"
    benchmark.extra_info.update(kind="scaling", op=op.name, dim=dim, points=points, slopes=exponents)
    replay(benchmark, [points[op.baseline.name][-1][1]])
