"""What ranks send and how even their shares are: formulas, against numbers worked out by hand."""

import numpy as np
import pytest
from fangyan.errors import UserError
from fangyan.recipe import load_recipe
from fangyan.training.check import check
from fangyan.training.check_report import as_json, tables
from fangyan.training.plan import Plan, Ranks, busiest_rank, bytes_sent

# A model of 100 elements in 4 bytes, of which 60 learn.
MODEL = {"trained": 240, "weights": 400, "elements": 100}


@pytest.mark.parametrize(
    ("stage", "accumulation", "passed"),
    [
        (0, 1, 2 * 240),
        (0, 3, 2 * 240),
        (1, 3, 2 * 240 + 240),
        (2, 1, 2 * 240 + 240),
        (2, 3, 3 * 2 * 240 + 240),
        (3, 1, 240 + 400),
        (3, 3, 3 * (240 + 400)),
    ],
)
def test_bytes_sent_by_stage_and_micro_batches(stage, accumulation, passed):
    assert bytes_sent(stage, 4, accumulation, **MODEL, scatters=True) == passed * 3 / 4
    assert bytes_sent(stage, 1, accumulation, **MODEL, scatters=True) == 0


def test_bytes_sent_of_zero_3_without_a_reduce_scatter_and_in_a_large_model():
    assert bytes_sent(3, 2, 1, **MODEL, scatters=False) == (2 * 240 + 400) / 2
    large = {"trained": 4, "weights": 2 * 500_000_001, "elements": 500_000_001}
    assert bytes_sent(3, 2, 1, **large, scatters=True) == (4 + 2 * large["weights"]) / 2


def test_busiest_rank_is_compared_with_the_mean():
    """Two ranks: 5 beside 4, then 3 beside nothing; on one rank there is no other."""
    lengths, batches = np.array([5, 2, 2, 3]), [[0, 1, 2], [3]]
    assert busiest_rank(batches, lengths, 2) == pytest.approx((5 + 3) / ((9 + 3) / 2) - 1)
    assert busiest_rank(batches, lengths, 1) == 0


def test_busiest_rank_adds_its_micro_batches():
    """Four micro-batches of 5, 2, 2 and 0: 7 and 2 on two ranks."""
    assert busiest_rank([[0, 1, 2]], np.array([5, 2, 2]), 2, 2) == pytest.approx(7 / 4.5 - 1)


def test_plan_takes_what_one_rank_sends_over_the_bandwidth_of_a_node():
    plan = Plan(Ranks(64, 8, 25.0), 2, {2: 50e9}, 1.0, 0.1)
    assert plan.ranks.nodes == 8
    assert plan.seconds(2) == 2.0
    assert Plan(Ranks(64, 8), 2, {2: 50e9}, 1.0, 0.1).seconds(2) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((64, 7), "--ranks-per-node: 7 does not divide 64"), ((8, 8, 25.0), "but 8 ranks are on one")],
)
def test_ranks_that_do_not_fill_nodes_are_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        Ranks(*arguments)


def test_check_plans_several_nodes(tmp_path):
    path = tmp_path / "few.conll"
    path.write_text("我\tO\n住\tO\n喺\tO\n香\tB-LOC\n港\tI-LOC\n\n" * 12, encoding="utf-8")
    data = ["data.format=conll", f"data.train={path}", f"data.dev={path}", "data.test=null"]
    recipe = load_recipe("cantonese-pos", [*data, "model.pretrained=false", "engine.precision=fp32"])
    report = check(recipe, Ranks(64, 8, 25.0))
    plan = as_json(report)["plan"]
    trained = 4 * report.model["trained"]
    assert plan["stages"]["1"]["bytes"] == 3 * trained * 63 / 64
    assert plan["stages"]["1"]["seconds"] == plan["stages"]["1"]["bytes"] / 25e9
    # 12 sentences are of one rank each.
    assert plan["busiest rank"] == pytest.approx(64 / 12 - 1)
    shown = [table.title for table in tables(report, recipe, 64) if hasattr(table, "title")]
    assert "Computed, not measured: 64 ranks on 8 nodes, 25 GB/s between them" in shown
