"""What needs no clock: instructions and compiler reports against those that are committed."""

from __future__ import annotations

import pytest
from fangyan_kernels.testing.offline import ARCHITECTURES

from fangyan_bench import instructions, static


def test_instruction_counts(request: pytest.FixtureRequest) -> None:
    """Count the instructions of the C++ kernels; with ``--results`` they are committed."""
    if reason := instructions.missing():
        pytest.skip(reason)
    if request.config.getoption("results"):
        static.write("instructions.json", static.instruction_counts())
        return
    committed = static.read("instructions.json")
    if committed["compiler"] != instructions.compiler():
        pytest.skip(f"counts are of {committed['compiler']}, this is {instructions.compiler()}")
    problems = static.grown_counts(committed["counts"], instructions.count_instructions())
    assert not problems, "\n".join(problems)


def test_kernel_reports(request: pytest.FixtureRequest) -> None:
    """Compile the Triton kernels for GPUs that are not here; with ``--results`` the reports are committed."""
    if request.config.getoption("results"):
        static.write("kernels.json", static.kernel_reports())
        return
    quick = request.config.getoption("quick")
    found = static.kernel_reports(static.QUICK_ARCHITECTURES if quick else ARCHITECTURES)
    committed = static.read("kernels.json")
    if committed["triton"] != found["triton"]:
        pytest.skip(f"reports are of triton {committed['triton']}, this is {found['triton']}")
    problems = static.worse_reports(committed["reports"], found["reports"])
    assert not problems, "\n".join(problems)
