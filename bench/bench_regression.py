"""``pytest bench/ --compare REF``: this tree must not be slower or larger than the ref."""

from __future__ import annotations

import pytest

from bench_steps import settings
from fangyan_bench.harness import compare
from fangyan_bench.harness.suite import Suite
from fangyan_bench.harness.timing import Effort

QUICK = Effort(least_rounds=9, most_rounds=21, seconds=4.0)
FULL = Effort(least_rounds=11, most_rounds=41, seconds=15.0)


def test_no_regression(request: pytest.FixtureRequest, suite: Suite) -> None:
    ref = request.config.getoption("compare")
    effort = QUICK if suite.quick else FULL
    verdicts = compare.compare(ref, compare.cases(suite.quick, settings()), effort)
    suite.lines += [*map(str, verdicts), compare.summary(ref, verdicts)]
    assert not compare.failed(verdicts), compare.summary(ref, verdicts)
