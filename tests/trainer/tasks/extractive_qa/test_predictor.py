"""What one that finds answers says."""

import json

import pytest
from fangyan.data.example import Example
from fangyan.errors import UserError
from fangyan.tasks.extractive_qa.decoding import Answer
from fangyan.tasks.extractive_qa.predictor import AnswerFinder
from fangyan.tasks.extractive_qa.task import ExtractiveQA


def finder(*answers):
    return AnswerFinder(
        ExtractiveQA(), lambda examples: [Answer(*answer) for answer in answers][: len(examples)]
    )


def test_answer_is_a_part_of_the_context():
    (found,) = finder((2, 4, 0.98765)).predict(["去邊度\t我去旺角"])
    assert str(found) == "".join(found.pieces()) == "旺角"
    assert json.loads(json.dumps(found.record())) == {
        "question": "去邊度",
        "context": "我去旺角",
        "answer": "旺角",
        "start": 2,
        "score": 0.9877,
    }


def test_no_answer_is_empty():
    (found,) = finder((-1, -1, 0.5)).predict(["去邊度\t我去旺角"])
    assert (str(found), found.start, list(found.pieces())) == ("", -1, [""])


@pytest.mark.parametrize("text", ["去邊度", "去邊度\t我\t佢", "\t我", "去\t "])
def test_question_and_context_have_one_tab(text):
    with pytest.raises(UserError, match="tabs, expected a question and its context with one between"):
        finder((0, 1, 0.5)).predict([text])


def test_a_file_gets_answers():
    examples = [Example({"question": "去邊度", "context": "我去旺角"}, "a:1", "x")] * 2
    found = [annotation.values for annotation in finder((2, 4, 0.98765), (-1, -1, 0.5)).annotate(examples)]
    assert found == [{"answers": [{"text": "旺角", "start": 2}]}, {"answers": []}]
    (found,) = finder((2, 4, 0.98765)).annotate(examples[:1], probabilities=1)
    assert found.values["probabilities"] == [["旺角", 0.9877]]


def test_options_of_writers_are_refused():
    with pytest.raises(
        UserError, match="max_new_tokens: is for models that write text, found one that finds"
    ):
        list(finder().stream(["x\ty"], options={"max_new_tokens": 1}))
