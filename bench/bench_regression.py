"""``pytest bench/ --compare REF``: this tree must not be slower or larger than the ref."""

from __future__ import annotations

import pytest

from bench_steps import settings
from fangyan_bench.harness import compare
from fangyan_bench.harness.suite import Suite
from fangyan_bench.harness.timing import TimingBudget

QUICK = TimingBudget(min_rounds=9, max_rounds=21, seconds=4.0)
FULL = TimingBudget(min_rounds=11, max_rounds=41, seconds=15.0)


def test_no_regression(request: pytest.FixtureRequest, suite: Suite) -> None:
    ref = request.config.getoption("compare")
    timing_budget = QUICK if suite.quick else FULL
    results = compare.compare(ref, compare.cases(suite.quick, settings()), timing_budget)
    suite.lines += [*map(str, results), compare.summary(ref, results)]
    assert not compare.failed(results), compare.summary(ref, results)
