"""What a classifier of texts takes for labels, what it refuses, and what it says of a text."""

import json

import pytest
from fangyan.data.example import Example
from fangyan.data.tokenization import IGNORE_INDEX, Tokenizer
from fangyan.errors import UserError
from fangyan.recipe import parse_recipe
from fangyan.tasks.sequence_classification.task import SequenceClassification
from fangyan.training.loaded_data import load_data
from fangyan.training.workload import Workload
from tiny_tokenizers import wordpiece

ONE = [{"text": "我哋去睇戲", "label": "x"}, {"text": "去睇戲", "label": "y"}]


def recipe(folder, records, task=None, data=None, **sections):
    path = folder / "train.jsonl"
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    content = {
        "name": "tiny",
        "task": {"name": "sequence_classification", **(task or {})},
        "data": {"format": "jsonl", "train": str(path), "dev": str(path), **(data or {})},
        "model": {"path": "cantonese-electra", "pretrained": False},
    }
    return parse_recipe(content | sections)


def records(*labels):
    return [{"text": f"我哋去睇戲{'我' * i}", "label": label} for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "kind", "classes"),
    [
        (["b", "a"], "single_label_classification", ["a", "b"]),
        ([0, 1], "single_label_classification", ["0", "1"]),
        ([True, False], "single_label_classification", ["false", "true"]),
        ([["b"], [], ["a", "b"]], "multi_label_classification", ["a", "b"]),
        ([0.5, 1.5], "regression", ["score"]),
    ],
)
def test_kind_is_that_of_the_labels(tmp_path, labels, kind, classes):
    task = load_data(recipe(tmp_path, records(*labels))).task
    assert (task.kind, task.labels) == (kind, classes)


def test_regression_of_integers_is_asked_for(tmp_path):
    task = load_data(recipe(tmp_path, records(1, 5), {"kind": "regression"})).task
    (sequence,) = task.tokenize([Example({"text": "我", "label": "5"}, "", "")], Tokenizer(wordpiece()), 16)
    assert sequence.targets == [5.0]


@pytest.mark.parametrize(
    ("labels", "task", "message"),
    [
        (["a", ["b"]], {}, "train.jsonl:1: label is 'a', expected a list of classes"),
        (["a", ["b"]], {"kind": "single_label"}, "train.jsonl:2: label is ['b'], expected one class"),
        ([["a", "a"], ["b"]], {}, "train.jsonl:1: label is ['a', 'a'], expected every class once"),
        (["a", "x"], {"kind": "regression"}, "train.jsonl:1: label is 'a', expected a number"),
        (["a", "a"], {}, "data.train: all labels are 'a', expected two classes or more"),
        ([[], []], {}, "data.train: no text has a class, expected some"),
        (["a", "b"], {"labels": ["a", "c"]}, "train.jsonl:2: label 'b' is not among the 2 classes: a, c"),
        ([0.5, 1.5], {"labels": ["a"]}, "task.labels: is for classes, found numbers"),
        (["a", "b"], {"class_weights": {"c": 2.0}}, "task.class_weights: 'c' is not in the classes of 2"),
        ([["a"], ["b"]], {"class_weights": "balanced"}, "task.class_weights: balanced is for one class"),
        (["a", None], {}, "train.jsonl:2: label is 'None', expected a class (text or an integer), a number"),
        (["a", ""], {}, "train.jsonl:2: label is '', expected a class"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, labels, task, message):
    with pytest.raises(UserError) as error:
        load_data(recipe(tmp_path, records(*labels), task))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("labels", "sections", "message"),
    [
        ([0.5, 1.5], {"objective": {"label_smoothing": 0.1}}, "objective.label_smoothing: is for one class"),
        (
            ["a", "b"],
            {"train": {"token_masking": 0.1}},
            "train.token_masking: is 0.1, which means nothing for sequence_classification",
        ),
    ],
)
def test_sections_that_mean_nothing_are_refused(tmp_path, labels, sections, message):
    with pytest.raises(UserError, match=message):
        Workload(recipe(tmp_path, records(*labels), **sections))


def test_recipe_of_the_wrong_format_says_what_chooses():
    content = {"name": "x", "task": {"name": "sequence_classification"}, "data": {"format": "hkcancor"}}
    with pytest.raises(
        UserError, match="data.content makes tokens and tags of a hkcancor file.*sentence_types"
    ):
        parse_recipe(content)


def test_findings_name_what_cannot_be_learned(tmp_path):
    found = recipe(tmp_path, [*ONE, {"text": ONE[0]["text"], "label": "y"}], data={"dev": 0.4})
    content = "\n".join(map(str, load_data(found.model_copy(update={"seed": 1})).findings))
    assert "classes that occur fewer than 10 times" in content
    path = tmp_path / "train.jsonl"
    assert f"{path}:3: label is 'y', but 'x' of the same text in {path}:1; texts like this: 1" in content


def test_texts_that_are_cut_are_counted(tmp_path):
    long = [{"text": "我" * 700, "label": "x"}, *ONE]
    findings = [str(finding) for finding in Workload(recipe(tmp_path, long)).findings]
    source = tmp_path / "train.jsonl"
    assert (
        "data.train: 1 of its 3 examples are longer than 512 sub-words, and the rest is not read, such as of "
        f"{source}:1"
    ) in findings


def test_label_lies_on_the_sub_word_that_stands_for_the_text():
    tokenizer = Tokenizer(wordpiece())
    example = Example({"text": "我哋去", "label": "b"}, "", "")
    for pooling, place in (("first", 0), ("last", 2), ("mean", 2)):
        task = SequenceClassification(["a", "b"], "single_label_classification", False, pooling)
        (sequence,) = task.tokenize([example], tokenizer, 16)
        assert [i for i, label in enumerate(sequence.labels) if label != IGNORE_INDEX] == [place]
        assert sequence.labels[place] == 1
        assert sequence.alignment.widths == ([3] if pooling == "mean" else [])


def test_text_of_nothing_is_the_unknown_token():
    task = SequenceClassification(["a", "b"], "single_label_classification", False, "first")
    (sequence,) = task.tokenize([Example({"text": "\u200b"}, "", "")], Tokenizer(wordpiece()), 16)
    assert len(sequence.input_ids) == 1
    assert sequence.labels == [IGNORE_INDEX]


@pytest.mark.parametrize("has_pairs", [False, True])
def test_a_pair_among_texts_is_refused(has_pairs):
    task = SequenceClassification(["a", "b"], "single_label_classification", has_pairs)
    fields = {"text": "我", "label": "a"} | ({} if has_pairs else {"pair": "佢"})
    with pytest.raises(UserError, match=r"other.jsonl:3: (a pair|one text), expected (a pair|one text)"):
        task.tokenize([Example(fields, "other.jsonl:3", "")], Tokenizer(wordpiece()), 8)
