"""What pytest-benchmark reports of a run are the rounds that were measured, under names of ours."""

import json

import pytest
import torch

import fangyan_bench.regression  # noqa: F401  (a run forgets what it imports; operators register once)
from fangyan_bench.harness import suite
from fangyan_bench.harness.machine import BENCH, PeakRates

pytest_plugins = ["pytester"]

ROUNDS = {"eager": [0.03, 0.01, 0.02], "fangyan": [2e-6, 1e-6, 1e-6]}
BENCHMARKS = f"""
import pytest
from fangyan_bench.harness.replay import CLOCK

@pytest.mark.benchmark(timer=CLOCK.read, warmup=False, disable_gc=False, cprofile=False)
@pytest.mark.parametrize("name", ["eager", "fangyan"])
def test_square(name, suite, benchmark):
    rounds = {ROUNDS}[name]
    suite.record(benchmark, "op", rounds, op="square", implementation=name, peak_memory=7)
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Run benchmarks with the conftest of bench/ and some options."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # pytest-benchmark times nothing there
    rates = PeakRates(1e9, {torch.float32: 2e9})
    monkeypatch.setattr(suite, "measure_peak_rates", lambda: rates)
    pytester.makeconftest((BENCH / "conftest.py").read_text(encoding="utf-8"))
    pytester.makepyfile(BENCHMARKS)
    return lambda *options: pytester.runpytest_inprocess(*options)


def table(result):
    """Rows of the printed table as lists of words."""
    lines = [line.split() for line in result.outlines]
    return [words for words in lines if words and words[0] in ROUNDS]


def test_table_has_the_measured_rounds_by_group_and_implementation(run):
    result = run()
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*benchmark 'op, square': 2 tests*", "Name*Min*Median*IQR*Max*Rounds"])
    fangyan, eager = table(result)  # the fastest first
    assert (fangyan[:4], fangyan[-1]) == (["fangyan", "1.0000", "(1.0)", "1.0000"], "3")
    assert (eager[0], eager[3], eager[-1]) == ("eager", "20,000.0000", "3")


def test_options_of_pytest_benchmark_hold(run):
    options = ("--benchmark-sort=name", "--benchmark-columns=max", "--benchmark-time-unit=s")
    result = run(*options, "--benchmark-warmup=on", "--benchmark-cprofile=cumtime")
    assert table(result) == [["eager", "0.0300", "(>1000.0)"], ["fangyan", "0.0000", "(1.0)"]]
    result.stdout.no_fnmatch_line("*cProfile*")
    result = run("--benchmark-group-by=func")
    result.stdout.fnmatch_lines(["*benchmark 'test_square': 2 tests*", "test_square?fangyan? *"])
    run("--benchmark-disable").assert_outcomes(passed=2)
    run("--benchmark-skip").assert_outcomes(skipped=2)


def test_json_has_rounds_machine_and_peak_rates(run, pytester):
    run("--benchmark-json=out.json").assert_outcomes(passed=2)
    stored = json.loads((pytester.path / "out.json").read_text(encoding="utf-8"))
    assert stored["machine_info"]["versions"]["torch"] == torch.__version__
    assert stored["peak_rates"] == {"bytes_per_second": 1e9, "flops": {"float32": 2e9}}
    for entry, (name, rounds) in zip(stored["benchmarks"], ROUNDS.items(), strict=True):
        assert entry["stats"]["data"] == pytest.approx(rounds)
        assert entry["params"] == {"name": name}
        assert entry["group"] == "op, square"
        assert entry["extra_info"] == {
            "kind": "op",
            "op": "square",
            "implementation": name,
            "peak_memory": 7,
        }


def test_compare_with_a_saved_run(run):
    run("--benchmark-save=before").assert_outcomes(passed=2)
    result = run("--benchmark-compare", "--benchmark-compare-fail=median:1%")
    result.assert_outcomes(passed=2)
    assert {" ".join(words[:2]) for words in table(result)} == {
        f"{name} ({run_name})" for name in ROUNDS for run_name in ("NOW", "0001_before")
    }


def test_replay_refuses_another_timer(run, pytester):
    pytester.makepyfile(BENCHMARKS.replace("timer=CLOCK.read, ", ""))
    result = run()
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        ["*ValueError: test_square?eager?: its timer is another, expected CLOCK.read"]
    )
