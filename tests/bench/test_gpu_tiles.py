"""The tiles part of a GPU run, on the CPU: what its candidates replace, and what it leaves behind."""

import json
import re
from types import ModuleType
from unittest.mock import patch

import pytest

from fangyan_bench.gpu import tiles
from fangyan_bench.gpu.candidates import Kernel, few_candidates, kernels
from fangyan_bench.gpu.record import Budget, Record

MICROSECONDS = {"chosen": 10.0, "a": 9.8, "b": 8.0, "c": 12.0, "d": 13.0, "e": 14.0, "f": 15.0}


def kernel(name="product K=8", **more):
    """A kernel whose module chooses its time; one of ``more`` may choose what raises."""
    module = ModuleType("product")
    module.tiles = MICROSECONDS["chosen"]

    def call():
        if isinstance(module.tiles, Exception):
            raise module.tiles
        return module.tiles

    candidates = {name: {"tiles": time} for name, time in (MICROSECONDS | more).items()} | {"chosen": {}}
    return Kernel(name, module, lambda: call, candidates)


@pytest.fixture
def measured(tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "_cpu_microseconds", lambda call: call())

    def measure(*entries, seconds=60.0):
        tiles.measure(entries, Record(tmp_path, "tiles"), Budget(seconds), dry=True)
        found = json.loads((tmp_path / "tiles.json").read_text(encoding="utf-8"))["entries"]
        return found, (tmp_path / "tiles.md").read_text(encoding="utf-8")

    return measure


def test_measure(measured):
    first, second = kernel(g=ValueError("out of\nregisters")), kernel("sum K=8", b=9.7)
    entries, page = measured(first, second)
    assert entries[first.name]["microseconds"] == MICROSECONDS
    assert entries[first.name]["failed"] == {"g": "ValueError: out of registers"}
    assert first.module.tiles == MICROSECONDS["chosen"]
    own, other = page.split("## ")[1:3]
    assert [row.split(" | ") for row in re.findall(r"^\| (.* \| .* \| .*x) \|$", own, re.M)] == [
        ["**chosen**", "10.0", "1.00x"],
        ["b", "8.0", "0.80x"],
        ["a", "9.8", "0.98x"],
        ["c", "12.0", "1.20x"],
        ["d", "13.0", "1.30x"],
        ["e", "14.0", "1.40x"],
    ]
    assert "- g: ValueError: out of registers" in own
    assert "| b | 9.7 | 0.97x |" in other
    decided = page.split("## What these numbers decide\n\n")[1]
    assert decided == "- product K=8: b is 1.25x as fast as the chosen tiles\n"


def test_measure_after_a_process_died(tmp_path, measured):
    record = Record(tmp_path, "tiles")
    record.running("first", "b", {"a": "it died before"})
    record.running("second", None, {})
    entries, page = measured(kernel("first"), kernel("second"))
    assert list(entries["first"]["failed"]) == ["a", "b"]
    assert entries["first"]["microseconds"].keys() == MICROSECONDS.keys() - {"a", "b"}
    assert "- second: failed: its process died or hung while its inputs were made" in page


def test_measure_without_a_package(measured):
    def make():
        raise ModuleNotFoundError("no bitsandbytes")

    entries, _ = measured(Kernel("merge", ModuleType("merge"), make, {"chosen": {}}), kernel())
    assert entries["merge"] == {"state": "missing", "reason": "no bitsandbytes"}
    assert entries["product K=8"]["state"] == "done"


def test_measure_skips_what_does_not_fit(measured, monkeypatch):
    left = iter([5.0] * 3)  # before the entry, then before each candidate
    monkeypatch.setattr(Budget, "left", property(lambda _: next(left, 0.0)))
    entries, page = measured(kernel("first"), kernel("second"))
    assert list(entries["first"]["microseconds"]) == ["chosen", "a"]
    assert "2 candidates timed, 0 failed, 5 not in time" in page
    assert entries["second"] == {"state": "skipped", "reason": "no time was left"}


KERNELS = kernels(dry=True)
OPTIONS = {"weight_h": "BLOCK_H", "warps": "num_warps", "stages": "num_stages"}  # as kernels are given them


@pytest.mark.parametrize("entry", KERNELS, ids=lambda entry: entry.name)
def test_choosing_reaches_the_launch(entry):
    """What a candidate's name says is what a kernel is launched with; afterwards all is as it was."""
    before = dict(vars(entry.module))
    try:
        call = entry.make()
    except ImportError as error:
        pytest.skip(str(error))
    for name in entry.candidates:
        with entry.choosing(name), patch.object(entry.module, "launch") as launch:
            call()
            programs = getattr(entry.module, "PROGRAMS", None)
        launched = [arguments.args[-1] for arguments in launch.call_args_list]
        for axis, value in re.findall(r"(\w+)=(\d+)", name):
            option = OPTIONS.get(axis, axis if axis.startswith("num_") else axis.upper())
            assert int(value) in ([programs] if axis == "PROGRAMS" else [o.get(option) for o in launched]), (
                name
            )
    assert vars(entry.module) == before


def test_few_candidates_begin_with_the_chosen_one():
    for entry in KERNELS:
        few = list(few_candidates(entry).candidates)
        assert few == [name for name in entry.candidates if name in few]
        assert few[0] == "chosen"
        assert 3 == len(few) < len(entry.candidates)
