"""The values part: the kernels' tests on the GPU, each outcome on disk as soon as it is known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from fangyan_bench.gpu.record import Record

ROOT = Path(__file__).parents[3]
PROCESSES = 12
# Of Triton's kernels alone; those compiled offline ask nothing of the GPU.
CHOSEN = ["tests/kernels", "-k", "triton and not offline and not interpreter"]
DRY = ["tests/kernels/linear_cross_entropy", "-k", "refuses_bad_arguments or cpp_refuses"]


def run(record: Record, seconds: float, dry: bool) -> None:
    """Run the tests until the time is over; pytest's own output is in ``pytest.log``."""
    outcomes = record.folder / "outcomes.jsonl"
    outcomes.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", *(DRY if dry else CHOSEN), "-q", "-p", "no:cacheprovider"]
    command += ["-p", "no:benchmark"]  # it warns beside pytest-xdist, and a warning is an error
    command += ["-p", "fangyan_bench.gpu.outcomes", f"--outcomes={outcomes}"]
    command += [
        "-W",
        "ignore::pytest.PytestConfigWarning",
    ]  # pytest-timeout's setting, without it
    if find_spec("xdist"):
        command += ["-n", str(min(PROCESSES, len(os.sched_getaffinity(0))))]
    if find_spec("pytest_timeout"):
        command += ["-o", "timeout=60"]
    end = time.monotonic() + seconds
    with (record.folder / "pytest.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.3)
            _read(outcomes, record)
        stopped = process.poll() is None
        process.kill()  # whoever started this part ends what it leaves
        code = process.wait()
    _read(outcomes, record)
    record.about["pytest"] = "stopped: no time was left" if stopped else f"exit status {code}"
    record.write()


def _read(outcomes: Path, record: Record) -> None:
    """Record the outcomes so far; the last line may be half written."""
    if not outcomes.exists():
        return
    lines = outcomes.read_text(encoding="utf-8").splitlines(keepends=True)
    new = [json.loads(line) for line in lines[len(record.entries) :] if line.endswith("\n")]
    for outcome in new:
        record.entries[outcome.pop("test")] = outcome
    if new:
        record.write()
