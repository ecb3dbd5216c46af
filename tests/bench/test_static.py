"""Comparison of compiler reports and instruction counts with the committed ones."""

from fangyan_bench.static import grown_counts, worse_reports

NAME = "op/product/sm_80"
REPORT = {
    "registers": 96,
    "spills": 0,
    "shared": 24 << 10,
    "instructions": {"total": 500, "tensor core": 32, "other": 468},
    "programs_per_sm": 4,
    "loads": {"16": 8},
    "stores": {"16": 4},
}


def worse(**changed):
    return worse_reports({NAME: REPORT}, {NAME: REPORT | changed})


def test_worse_reports_of_an_unchanged_kernel():
    assert worse() == []


def test_worse_reports_names_what_is_worse():
    assert worse(spills=8) == [f"{NAME}: 8 bytes spilled, 0 committed"]
    assert worse(shared=48 << 10) == [f"{NAME}: 49,152 bytes of shared memory, 24,576 committed"]
    assert worse(registers=128) == [f"{NAME}: 128 registers, 96 committed"]
    assert worse(programs_per_sm=3) == [f"{NAME}: 3 programs per multiprocessor, 4 committed"]
    assert worse(loads={"16": 8, "2": 1}) == [f"{NAME}: 1 accesses of 1 or 2 bytes, 0 committed"]
    assert worse(instructions={"total": 500, "other": 500}) == [
        f"{NAME}: no tensor-core instruction, 32 committed"
    ]
    assert worse(instructions={"total": 600, "tensor core": 32, "other": 568}) == [
        f"{NAME}: 600 instructions, 500 committed"
    ]


def test_worse_reports_of_a_kernel_that_no_longer_fits():
    heavy = REPORT | {"shared": 200 << 10}
    (message,) = worse_reports({NAME: heavy}, {NAME: heavy})
    assert "the chip has" in message


def test_worse_reports_without_a_committed_report():
    assert worse_reports({}, {NAME: REPORT}) == [f"{NAME}: no report is committed"]


def test_grown_counts():
    assert grown_counts({"a": 1000}, {"a": 1010}) == []
    assert grown_counts({"a": 1000}, {"a": 1100}) == ["a: 1,100 instructions, 1.10x the committed 1,000"]
    assert grown_counts({}, {"a": 5}) == ["a: 5 instructions, none committed"]
