"""Scores by tag, entity and word, against what can be counted by hand."""

import json

import pytest
from fangyan.tasks.token_classification.metrics import tag_metrics
from fangyan.tasks.token_classification.report import as_entities, tag_report


def test_report_of_entities_is_of_whole_entities():
    gold = [["B-LOC", "I-LOC", "O", "B-PER"], ["B-LOC", "O"]]
    predicted = [["B-LOC", "O", "O", "B-PER"], ["B-LOC", "B-PER"]]
    report = tag_report(gold, predicted, "iob2")
    assert [tuple(scores) for scores in report.classes] == [
        ("LOC", 50.0, 50.0, 50.0, 2),
        ("PER", 50.0, 100.0, pytest.approx(200 / 3), 1),
    ]
    assert [tuple(pair) for pair in report.confusions] == [("I-LOC", "O", 1), ("O", "B-PER", 1)]


def test_report_of_plain_tags():
    report = tag_report([["n", "v", "n"]], [["n", "n", "x"]], "plain")
    assert [tuple(scores) for scores in report.classes] == [
        ("n", 50.0, 50.0, 50.0, 2),
        ("v", 0.0, 0.0, 0.0, 1),
        ("x", 0.0, 0.0, 0.0, 0),
    ]
    assert [tuple(pair) for pair in report.confusions] == [("v", "n", 1), ("n", "x", 1)]


def test_report_of_words_agrees_with_joint_f1():
    """A word's tag is that of its first token, whatever the others have."""
    gold = [["B-n", "I-n", "B-v", "B-n", "I-v"], ["I-n", "B-v"]]
    predicted = [["B-n", "I-v", "B-v", "B-n", "B-v"], ["B-n", "B-v"]]
    report = tag_report(gold, predicted, "segmentation")
    by_name = {scores.name: scores for scores in report.classes}
    assert tuple(by_name["n"]) == (
        "n",
        pytest.approx(200 / 3),
        pytest.approx(200 / 3),
        pytest.approx(200 / 3),
        3,
    )
    assert tuple(by_name["v"]) == ("v", pytest.approx(200 / 3), 100.0, pytest.approx(80.0), 2)
    right = sum(scores.recall / 100 * scores.support for scores in report.classes)
    joint = tag_metrics(gold, predicted, "segmentation")["joint_f1"]
    assert joint == pytest.approx(200 * right / (5 + 6))
    assert as_entities(gold[0]) == ["B-n", "I-n", "B-v", "B-n", "I-n"]


@pytest.mark.parametrize("scheme", ["plain", "iob2", "segmentation"])
def test_report_of_nothing_is_empty(scheme):
    assert tag_report([], [], scheme).classes == []


def test_report_is_written_whole_and_shown_in_part(tmp_path):
    tags = [[f"t{i:02d}" for i in range(25)]]
    report = tag_report(tags, [[*tags[0][:24], "t00"]], "plain")
    report.write(tmp_path / "reports" / "dev.json")
    content = json.loads((tmp_path / "reports" / "dev.json").read_text(encoding="utf-8"))
    assert len(content["classes"]) == 25
    assert content["confusions"] == [{"gold": "t24", "predicted": "t00", "times": 1}]
    scores, confused = report.tables("dev")
    assert scores.row_count == 20
    assert scores.title == "dev by tag (percent), the 20 most frequent of 25"
    assert confused.row_count == 1
