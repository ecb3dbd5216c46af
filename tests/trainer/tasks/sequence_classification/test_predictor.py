"""What a classifier of texts says of them."""

import json

import numpy as np
import pytest
from fangyan.data.example import Example
from fangyan.errors import UserError
from fangyan.tasks.sequence_classification.labels import KINDS
from fangyan.tasks.sequence_classification.predictor import TextClassifier
from fangyan.tasks.sequence_classification.task import SequenceClassification, TextOutput


def classifier(kind, scores, pairs=False):
    task = SequenceClassification(["a", "b"], KINDS[kind], pairs, "first")
    seen = []

    def score(examples, hidden):
        seen.extend(examples)
        return [TextOutput(i, np.array(scores, dtype=np.float32)) for i in range(len(examples))]

    return TextClassifier(task, score), seen


def test_one_class_has_a_softmax():
    predictor, _ = classifier("single_label", [0.0, np.log(3)])
    (found,) = predictor.predict(["x"])
    assert str(found) == "b"
    assert found.record() == {"text": "x", "label": "b", "probabilities": {"b": 0.75, "a": 0.25}}
    assert "".join(found.pieces()) == "b"


def test_several_classes_have_a_sigmoid_each():
    predictor, _ = classifier("multi_label", [np.log(3), np.log(3)])
    (found,) = predictor.predict(["x"])
    assert found.label == ("a", "b")
    assert str(found) == "a, b"
    assert json.loads(json.dumps(found.record()))["probabilities"] == {"a": 0.75, "b": 0.75}
    (found,) = classifier("multi_label", [-800.0, 0.0])[0].predict(["x"])
    assert str(found) == ""
    assert found.probabilities == {"b": 0.5, "a": 0.0}


def test_a_number_is_itself():
    (found,) = classifier("regression", [1.23456])[0].predict(["x"])
    assert str(found) == "1.235"
    assert found.record() == {"text": "x", "label": pytest.approx(1.23456)}


def test_a_pair_has_one_tab():
    predictor, seen = classifier("single_label", [0.0, 1.0], pairs=True)
    predictor.predict(["我\t你"])
    assert seen[0].fields == {"text": "我", "pair": "你"}
    for text, tabs in (("我你", 0), ("我\t你\t佢", 2)):
        with pytest.raises(UserError, match=f"has {tabs} tabs, expected a pair of texts with one between"):
            predictor.predict([text])


def test_a_file_gets_labels_as_files_have_them():
    examples = [Example({"text": "x"}, "a:1", "x")]
    predictor, _ = classifier("single_label", [0.0, np.log(3)])
    assert [a.values for a in predictor.annotate(iter(examples * 2))] == [{"label": "b"}] * 2
    (found,) = predictor.annotate(examples, probabilities=1)
    assert found.values == {"label": "b", "probabilities": [["b", 0.75]]}
    (found,) = classifier("multi_label", [1.0, -1.0])[0].annotate(examples)
    assert found.values == {"label": ["a"]}
    (found,) = classifier("regression", [0.5])[0].annotate(examples, probabilities=1)
    assert found.values == {"label": 0.5}
    for name, value in (("1", 1), ("-20", -20), ("true", True), ("01", "01"), ("1e3", "1e3")):
        predictor.task.labels[1] = name
        (found,) = predictor.annotate(examples)
        assert found.values == {"label": value}
    assert list(predictor.annotate([])) == []


@pytest.mark.parametrize("pairs", [True, False])
def test_a_file_has_what_the_model_reads(pairs):
    fields = {"text": "x"} if pairs else {"text": "x", "pair": "y"}
    predictor, _ = classifier("single_label", [0.0, 1.0], pairs=pairs)
    with pytest.raises(UserError, match=f"^a:1: the model reads {'two texts' if pairs else 'one text'}, exp"):
        next(predictor.annotate([Example(fields, "a:1", "x")]))


def test_options_of_writers_are_refused():
    predictor, _ = classifier("single_label", [0.0, 1.0])
    with pytest.raises(UserError, match="max_new_tokens: is for models that write text, found a classifier"):
        list(predictor.stream(["x"], options={"max_new_tokens": 1}))
