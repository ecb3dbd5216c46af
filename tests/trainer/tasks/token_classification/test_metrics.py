"""Metrics against sklearn, seqeval and counting by hand."""

import pytest
from fangyan.tasks.token_classification.metrics import (
    entity_metrics,
    tag_metrics,
    token_accuracy,
    word_metrics,
    word_spans,
)
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import classification_report
from seqeval.scheme import IOB2
from sklearn.metrics import accuracy_score, f1_score

word_tags = st.lists(st.sampled_from(["B-n", "I-n", "B-v", "I-v"]), min_size=1, max_size=20)
entity_tags = st.lists(st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]), min_size=1, max_size=20)


def pairs(tags):
    return st.lists(
        tags.flatmap(lambda gold: st.tuples(st.just(gold), st.permutations(gold))), min_size=1, max_size=5
    )


@given(pairs(word_tags))
def test_token_accuracy_is_sklearns(sentences):
    gold, predicted = zip(*sentences, strict=True)
    flat = [[tag for tags in side for tag in tags] for side in (gold, predicted)]
    assert token_accuracy(gold, predicted) == pytest.approx(100 * accuracy_score(*flat))


@given(pairs(word_tags))
def test_word_metrics_f1_is_sklearns_over_all_spans(sentences):
    """Over every possible span, is it a word or not: sklearn's binary F1 is the span F1."""
    gold, predicted = zip(*sentences, strict=True)
    for score, cut in (("segmentation_f1", 2), ("joint_f1", 3)):
        spans = [
            {(i, *span[:cut]) for i, tags in enumerate(side) for span in word_spans(tags)}
            for side in (gold, predicted)
        ]
        universe = sorted(spans[0] | spans[1])
        truth, found = ([span in side for span in universe] for side in spans)
        assert word_metrics(gold, predicted)[score] == pytest.approx(100 * f1_score(truth, found))


@given(pairs(entity_tags))
def test_entity_metrics_are_seqevals_strict_iob2(sentences):
    gold, predicted = (list(map(list, side)) for side in zip(*sentences, strict=True))
    if not any(tag.startswith("B-") for tags in gold + predicted for tag in tags):
        assert entity_metrics(gold, predicted)["entity_f1"] == 0.0  # seqeval's report divides by no entity
        return
    report = classification_report(
        gold, predicted, mode="strict", scheme=IOB2, output_dict=True, zero_division=0
    )
    found = entity_metrics(gold, predicted)
    if "micro avg" in report:
        assert found["entity_f1"] == pytest.approx(100 * report["micro avg"]["f1-score"])
        assert found["entity_recall"] == pytest.approx(100 * report["micro avg"]["recall"])


def test_word_metrics_by_hand():
    gold = [["B-n", "I-n", "B-v"]]
    assert word_spans(gold[0]) == [(0, 2, "n"), (2, 3, "v")]
    assert word_metrics(gold, gold) == {"pos_accuracy": 100.0, "segmentation_f1": 100.0, "joint_f1": 100.0}
    # One of two words found, its tag wrong; the other word's first token has the right tag.
    scores = word_metrics(gold, [["B-v", "I-v", "I-v"]])
    assert scores == {"pos_accuracy": 50.0, "segmentation_f1": 0.0, "joint_f1": 0.0}
    scores = word_metrics(gold, [["B-v", "I-v", "B-v"]])
    assert scores == {"pos_accuracy": 50.0, "segmentation_f1": 100.0, "joint_f1": 50.0}


def test_entity_metrics_give_no_credit_for_a_wrong_prefix():
    assert entity_metrics([["B-PER", "I-PER"]], [["I-PER", "I-PER"]])["entity_f1"] == 0.0


def test_tag_metrics_of_each_scheme():
    gold, found = [["B-n", "I-n"]], [["B-n", "B-n"]]
    accuracy = {"token_accuracy": 50.0}
    assert tag_metrics(gold, found, "plain") == accuracy
    assert tag_metrics(gold, found, "segmentation") == accuracy | word_metrics(gold, found)
    assert tag_metrics(gold, found, "iob2") == accuracy | entity_metrics(gold, found)
