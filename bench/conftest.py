"""Options, the suite that all tests read from, and what a run stores and prints."""

from __future__ import annotations

import datetime
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from fangyan_bench.harness import results
from fangyan_bench.harness.machine import BENCH, machine_name, versions
from fangyan_bench.harness.suite import Suite
from fangyan_bench.regression import check_ref

SUITE: pytest.StashKey[Suite] = pytest.StashKey()
Groups = list[tuple[str, list[dict[str, Any]]]]  # of pytest-benchmark: by title, the rows of a table


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add this suite's options to pytest's."""
    group = parser.getgroup("fangyan", "fangyan's benchmarks")
    group.addoption(
        "--quick", action="store_true", help="small shapes, little data, few rounds: 3 minutes on 2 cores"
    )
    group.addoption("--compare", metavar="REF", help="time this tree and a git ref in turns; slower fails")
    group.addoption(
        "--results",
        action="store_true",
        help="replace what bench/results holds of this machine; of a selection (-k, a file), only that",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse options that contradict each other, and start a suite."""
    config.stash[SUITE] = Suite(config.getoption("quick"))
    if config.option.benchmark_columns is None:  # pytest-benchmark's default is ten of them
        config.option.benchmark_columns = ["min", "median", "iqr", "max", "rounds"]
    # Peers, and what they import, warn as they please; nothing of theirs is tested here.
    config.addinivalue_line("filterwarnings", "ignore")
    if config.option.compare is not None:
        try:
            check_ref(config.option.compare)
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None
    if config.option.results and (config.option.quick or config.option.compare):
        raise pytest.UsageError("--results takes the full shapes of this tree: no --quick, no --compare")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select the comparison alone for ``--compare``, and all else without it."""
    comparing = config.getoption("compare") is not None
    selected = [item for item in items if (item.path.name == "bench_regression.py") == comparing]
    config.hook.pytest_deselected(items=[item for item in items if item not in selected])
    items[:] = selected
    for item in items:
        item.add_marker(pytest.mark.timeout(0))  # a case takes what it takes


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> Suite:
    """Return the suite of this run, its machine's peak rates measured before anything else has run."""
    suite = request.config.stash[SUITE]
    suite.peak_rates  # noqa: B018
    return suite


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the results of ``--results``; a run that timed nothing leaves them alone."""
    suite = session.config.stash[SUITE]
    if not session.config.getoption("results") or not suite.rows:
        return
    path = BENCH / "results" / machine_name() / "benchmarks.json"
    commit = _commit()
    rows = [{**row, "commit": commit} for row in suite.rows]
    if _is_selection(session.config) and path.exists():
        rows = results.merge(results.read(path)[1], rows)
    results.write(path, _describe_run(suite), rows)


def _describe_run(suite: Suite) -> dict[str, Any]:
    """Return the machine, versions and command of a run."""
    return {
        "machine": machine_name(),
        "command": "pytest bench/ --results",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        **_peak_rates(suite),
    }


def _peak_rates(suite: Suite) -> dict[str, Any]:
    """Return the machine's peak rates as JSON holds them."""
    rates = suite.peak_rates
    flops = {str(dtype).removeprefix("torch."): flops for dtype, flops in rates.flops.items()}
    return {"bytes_per_second": rates.bytes_per_second, "flops": flops}


def _commit() -> str:
    """Return the commit that is measured, and whether anything but results differs from it."""
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)bench/results")
    return _git("rev-parse", "HEAD")[:10] + (" and uncommitted changes" if changes else "")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=BENCH, capture_output=True, text=True).stdout.strip()


def _is_selection(config: pytest.Config) -> bool:
    """Return whether less is measured than all of bench/."""
    narrowed = config.option.keyword or config.option.markexpr
    return bool(narrowed) or [Path(path).resolve() for path in config.args] != [BENCH]


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Add what times depend on: ``--benchmark-compare`` warns if it differs."""
    machine_info.update(name=machine_name(), threads=torch.get_num_threads(), versions=versions())


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Add the peak rates, which are no part of the machine's description: every run measures others."""
    output_json["peak_rates"] = _peak_rates(config.stash[SUITE])


@pytest.hookimpl(wrapper=True)
def pytest_benchmark_group_stats(group_by: str) -> Generator[None, Groups, Groups]:
    """Name rows by their implementation alone: their table's title has the op, its shape and the pass."""
    groups = yield
    if group_by == "group":
        for row in (row for _, rows in groups for row in rows):
            row["name"] = results.label(row["extra_info"])
    return groups


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the suite's messages."""
    messages = config.stash[SUITE].messages
    if messages:
        terminalreporter.section("fangyan")
    for message in messages:
        terminalreporter.write_line(message)
