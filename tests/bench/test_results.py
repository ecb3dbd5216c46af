"""What a run stores: one line per benchmark, and nothing of it that a report would show otherwise."""

import json

import pytest

from fangyan_bench.harness import results
from fangyan_bench.harness.stats import Ratio, summarize

RUN = {"machine": "abacus", "command": "pytest bench/ --results", "versions": {"python": "3.11"}}


def row(implementation, rounds, **fields):
    return results.make_row("op", rounds, op="square", implementation=implementation, **fields)


def test_make_row_keeps_median_and_spread_alone():
    stored = row("eager", [0.1, 0.3, 0.2], ratio=Ratio(2.0, 1.5, 2.5), error=None, peak_memory=7)
    assert stored["seconds"] == pytest.approx({"median": 0.2, "low": 0.12, "high": 0.28, "rounds": 3})
    assert stored["ratio"] == {"median": 2.0, "low": 1.5, "high": 2.5}
    assert "error" not in stored
    assert "0.3" not in json.dumps(stored)


def test_write_is_one_line_per_row(tmp_path):
    path = tmp_path / "machine" / "benchmarks.json"
    rows = [row("eager", [0.25] * 31), row("fangyan", [1 / 3] * 31, points={"eager": [(1, 2 / 3)]})]
    results.write(path, RUN, rows)
    assert results.read(path) == (RUN, json.loads(json.dumps(rows)))
    lines = path.read_text(encoding="utf-8").splitlines()
    assert sum('"kind"' in line for line in lines) == 2
    assert max(map(len, lines)) < 300


def test_merge_replaces_what_was_measured_again_in_its_place():
    old = [row("eager", [1.0]), row("peer", [2.0])]
    merged = results.merge(old, [row("fangyan", [3.0]), row("eager", [4.0])])
    assert [(r["implementation"], r["seconds"]["median"]) for r in merged] == [
        ("eager", 4.0),
        ("peer", 2.0),
        ("fangyan", 3.0),
    ]


@pytest.mark.parametrize(
    ("kind", "fields", "title", "label"),
    [
        ("op", {"op": "square", "pass": "call", "implementation": "eager"}, "op, square, call", "eager"),
        ("step", {"task": "tagger", "implementation": "ours"}, "step, tagger, seconds per token", "ours"),
        ("scaling", {"op": "square", "dim": "T"}, "scaling, square", "dim T"),
        ("ranks", {"ranks": 2, "stage": 0}, "ranks, seconds per token", "ranks 2, stage 0"),
    ],
)
def test_title_and_label(kind, fields, title, label):
    stored = results.make_row(kind, [0.1], **fields)
    assert (results.title(stored), results.label(stored)) == (title, label)


def test_summarize_is_by_percentiles():
    found = summarize(range(11))
    assert (found.low, found.median, found.high, found.rounds) == (1.0, 5.0, 9.0, 11)
