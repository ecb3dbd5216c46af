"""A plugin of pytest that writes one line of JSON per test, as soon as it has ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the file."""
    parser.addoption("--outcomes", metavar="FILE", type=Path, help="one line of JSON per test")


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin in the process that all results are reported to."""
    # Workers of pytest-xdist report to the process that started them.
    if config.getoption("outcomes") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Outcomes(config.getoption("outcomes")))


class _Outcomes:
    def __init__(self, path: Path):
        self._path = path

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(report.nodeid, "failed", 0.0, str(report.longrepr))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        ended = report.when == "call" or report.outcome != "passed"
        if ended and not (report.when == "teardown" and report.outcome == "passed"):
            said = str(report.longrepr) if report.longrepr else ""
            self._write(report.nodeid, report.outcome, report.duration, said)

    def _write(self, test: str, state: str, seconds: float, said: str) -> None:
        lines = [line for line in said.splitlines() if line.startswith("E ")] or said.splitlines()[-1:]
        reason = " ".join(" ".join(lines).split())[:300]
        with self._path.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"test": test, "state": state, "seconds": seconds, "reason": reason}) + "\n")
