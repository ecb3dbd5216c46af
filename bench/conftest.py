"""Options, the suite that all tests read from, and what a run prints and stores."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from fangyan_bench.harness.compare import check_ref
from fangyan_bench.harness.machine import device, machine_name
from fangyan_bench.harness.suite import Suite

HERE = Path(__file__).parent
SUITE: pytest.StashKey[Suite] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fangyan", "fangyan's benchmarks")
    group.addoption("--quick", action="store_true", help="small shapes and few rounds: 3 minutes on 2 cores")
    group.addoption("--compare", metavar="REF", help="time this tree and a git ref in turns; slower fails")
    group.addoption(
        "--results",
        action="store_true",
        help="replace what bench/results holds of this machine; of a part (-k, a file) that part alone",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.stash[SUITE] = Suite(config.getoption("quick"))
    # Peers, and what they import, warn as they please; nothing of theirs is tested here.
    config.addinivalue_line("filterwarnings", "ignore")
    config.option.benchmark_columns = ["median", "iqr", "rounds"]
    config.option.benchmark_sort = "name"
    config.option.benchmark_group_by = "group"
    if config.option.compare is not None:
        try:
            check_ref(config.option.compare)
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None
    if config.getoption("results"):
        if config.option.quick or config.option.compare:
            raise pytest.UsageError("--results takes the full shapes of this tree: no --quick, no --compare")
        folder = HERE / "results" / machine_name()
        folder.mkdir(parents=True, exist_ok=True)
        config.option.benchmark_json = folder / "benchmarks.json"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """``--compare`` runs the comparison alone; otherwise it has nothing to compare with."""
    comparing = config.getoption("compare") is not None
    chosen = [item for item in items if (item.path.name == "bench_regression.py") == comparing]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen
    for item in items:
        item.add_marker(pytest.mark.timeout(0))  # a case takes what it takes


def pytest_collection_finish(session: pytest.Session) -> None:
    """A run that times nothing (``bench_static.py``) leaves the timings alone: the plugin warns of it."""
    if not any("benchmark" in getattr(item, "fixturenames", ()) for item in session.items):
        session.config._benchmarksession.json = None  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> Suite:
    suite = request.config.stash[SUITE]
    suite.peak_rates  # noqa: B018  (measured first, on a machine that has done nothing yet)
    return suite


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in ("torch", "triton", "transformers", "deepspeed", "bitsandbytes", "peft", "liger-kernel"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    peak_rates = config.stash[SUITE].peak_rates
    machine_info.update(
        name=machine_name(),
        device=torch.cuda.get_device_name() if device() == "cuda" else platform.processor(),
        threads=torch.get_num_threads(),
        versions=versions,
        bytes_per_second=peak_rates.bytes_per_second,
        flops={str(dtype).removeprefix("torch."): flops for dtype, flops in peak_rates.flops.items()},
    )


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: Any) -> None:
    machine_info = output_json["machine_info"]
    machine_info.pop("node", None)  # a host's name says nothing of its speed
    machine_info["cpu"].pop("flags", None)
    commit = output_json["commit_info"]
    for entry in output_json["benchmarks"]:
        entry.pop("params")  # the whole declaration of the op, in every entry
        entry["extra_info"]["commit"] = commit["id"][:10] + (" and uncommitted changes" if _changed() else "")
    if config.getoption("results") and _is_part(config):
        output_json["benchmarks"] += _others(Path(config.option.benchmark_json), output_json["benchmarks"])


def _changed() -> bool:
    """Whether anything but results differs from the commit."""
    command = [
        "git",
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ":/",
        ":(exclude,top)bench/results",
    ]
    return bool(subprocess.run(command, cwd=HERE, capture_output=True, text=True).stdout.strip())


def _is_part(config: pytest.Config) -> bool:
    """Whether what is measured is less than a whole run of bench/."""
    chosen = config.option.keyword or config.option.markexpr
    return bool(chosen) or [Path(path).resolve() for path in config.args] != [HERE]


def _others(path: Path, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What an earlier run measured and this one did not."""
    if not path.exists():
        return []
    names = {entry["fullname"] for entry in found}
    return [entry for entry in json.loads(path.read_text())["benchmarks"] if entry["fullname"] not in names]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    lines = config.stash[SUITE].lines
    if lines:
        terminalreporter.section("fangyan")
        for line in lines:
            terminalreporter.write_line(line)
