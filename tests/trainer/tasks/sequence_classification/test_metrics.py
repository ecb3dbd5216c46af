"""Metrics of labels against what can be counted by hand."""

import pytest
from fangyan.tasks.sequence_classification.metrics import METRICS, label_metrics, label_report

ONE, SEVERAL, NUMBER = METRICS


def test_metrics_of_one_class():
    found = label_metrics(ONE, ["a", "a", "a", "b"], ["a", "a", "b", "c"])
    # a: precision 1, recall 2/3, F1 0.8; b: 0; c: 0.
    assert found == {
        "macro_f1": pytest.approx(80 / 3),
        "weighted_f1": pytest.approx(60.0),
        "accuracy": pytest.approx(50.0),
    }


def test_metrics_of_several_classes():
    found = label_metrics(SEVERAL, [("a", "b"), (), ("b",)], [("b", "a"), ("a",), ()])
    # a: 1 of 2 right, 1 found: F1 2/3. b: 1 right, 1 missed: F1 2/3.
    assert found == {
        "macro_f1": pytest.approx(200 / 3),
        "weighted_f1": pytest.approx(200 / 3),
        "micro_f1": pytest.approx(200 / 3),
        "exact_match": pytest.approx(100 / 3),
    }
    assert label_metrics(SEVERAL, [(), ()], [(), ()])["exact_match"] == 100.0


def test_metrics_of_numbers():
    found = label_metrics(NUMBER, [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 40.0])
    assert found["spearman"] == pytest.approx(100.0)
    assert 80 < found["pearson"] < 90
    assert label_metrics(NUMBER, [1.0, 2.0], [3.0, 3.0]) == {"spearman": 0.0, "pearson": 0.0}


@pytest.mark.parametrize("kind", METRICS)
def test_metrics_of_nothing(kind):
    assert label_metrics(kind, [], []) == dict.fromkeys(METRICS[kind], 0.0)
    report = label_report(kind, [], [])
    assert report is None or report.classes == []


def test_report_of_one_class():
    report = label_report(ONE, ["a", "a", "b"], ["a", "b", "b"])
    assert [tuple(scores) for scores in report.classes] == [
        ("a", 100.0, 50.0, pytest.approx(200 / 3), 2),
        ("b", 50.0, 100.0, pytest.approx(200 / 3), 1),
    ]
    assert [tuple(pair) for pair in report.confusions] == [("a", "b", 1)]


def test_report_of_several_classes():
    report = label_report(SEVERAL, [("a", "b"), ("b",)], [("b",), ("b",)])
    assert [tuple(scores) for scores in report.classes] == [("b", 100, 100, 100, 2), ("a", 0, 0, 0, 1)]
    assert report.confusions == []
