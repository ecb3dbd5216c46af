"""``pytest bench/ --compare REF``: this tree must not be slower or larger than the ref."""

from __future__ import annotations

import pytest

from bench_steps import tagger_spec
from fangyan_bench import regression
from fangyan_bench.harness.steps import QUICK_DATA
from fangyan_bench.harness.suite import Suite
from fangyan_bench.harness.timing import TimingBudget

QUICK = TimingBudget(min_rounds=9, max_rounds=21, seconds=4.0)
FULL = TimingBudget(min_rounds=11, max_rounds=41, seconds=15.0)


def test_no_regression(request: pytest.FixtureRequest, suite: Suite) -> None:
    """Compare every implementation of ours, and a whole step, with the ref's."""
    ref = request.config.getoption("compare")
    timing_budget = QUICK if suite.quick else FULL
    spec = tagger_spec(*(QUICK_DATA if suite.quick else ()))
    results = regression.compare(ref, regression.cases(suite.quick, spec), timing_budget)
    suite.messages += [*map(str, results), regression.summary(ref, results)]
    assert not regression.failed(results), regression.summary(ref, results)
