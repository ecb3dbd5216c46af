"""Exact match and F1 of answers against SQuAD's own script, and what can be counted by hand."""

import collections
import re
import string

import pytest
from fangyan.data.example import Example
from fangyan.tasks.extractive_qa.metrics import METRICS, PARTS, answer_metrics, normalize, scores


def official(text):
    """SQuAD's ``normalize_answer`` (evaluate-v2.0.py), as words."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def official_f1(right, found):
    right, found = official(right), official(found)
    common = sum((collections.Counter(right) & collections.Counter(found)).values())
    if not right or not found:
        return float(right == found)
    return 2 * common / (len(right) + len(found)) if common else 0.0


@pytest.mark.parametrize(
    ("right", "found"),
    [
        ("the Norman conquest", "Norman conquest."),
        ("a 10% rise ($3.50)", "an 10 rise of 350"),
        ("in the 10th and 11th centuries", "10th, 11th"),
        ("William's men", "williams MEN"),
        ("Rollo", "Duke"),
        ("Rollo", ""),
        ("", "Rollo"),
        ("", ""),
    ],
)
def test_scores_are_the_official_ones_in_english(right, found):
    f1, exact = scores(found, [right] if right else [], english=True)
    assert f1 == pytest.approx(official_f1(right, found))
    assert exact == float(official(right) == official(found))


@pytest.mark.parametrize(
    ("right", "found", "f1"),
    [
        ("旺角", "旺角。", 1.0),
        ("「香港島」", "香港", 0.8),
        ("ราชบุรี", "ราชบุรี", 1.0),
        ("9月 旺角", "9月旺角", 1.0),
        ("Sankt Gallen", "sankt gallen", 1.0),
        ("ta\u0301i hei", "tái hei", 1.0),
        ("¿qué?", "qué", 1.0),
    ],
)
def test_scores_of_other_scripts(right, found, f1):
    assert scores(found, [right], english=False)[0] == pytest.approx(f1)


def test_articles_are_english():
    assert normalize("a the an", english=False) == ["a", "the", "an"]
    assert normalize("The a cat", english=True) == ["cat"]
    assert normalize("?!", english=False) == ["?!"]
    assert normalize("the", english=True) == ["the"]


def example(*answers, context="x"):
    found = tuple({"text": answer, "start": 0} for answer in answers)
    return Example({"question": "q", "context": context, "answers": found}, "", "")


def test_metrics_of_questions_without_an_answer():
    examples = [example("a b", "c"), example("a b"), example(), example()]
    found = answer_metrics((*METRICS, *PARTS), examples, ["c", "", "", "a"])
    assert found == {
        "f1": 50.0,
        "exact_match": 50.0,
        "answerable_f1": 50.0,
        "unanswerable_f1": 50.0,
    }
    assert answer_metrics(METRICS, examples[:1], ["b"]) == {"f1": pytest.approx(200 / 3), "exact_match": 0.0}
    assert answer_metrics(METRICS, [], []) == dict.fromkeys(METRICS, 0.0)


def test_english_is_known_by_its_article():
    right, found = example("a cat", context="Where is the cat? A cat."), ["cat"]
    assert answer_metrics(METRICS, [right], found)["exact_match"] == 100.0
    assert answer_metrics(METRICS, [example("a cat", context="uma a cat")], found)["exact_match"] == 0.0
