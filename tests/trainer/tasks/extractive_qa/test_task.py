"""What is read, learned, refused and counted of questions."""

import json

import pytest
from fangyan.data.example import Example
from fangyan.data.tokenization import IGNORE_INDEX, Tokenizer
from fangyan.errors import UserError
from fangyan.recipe import parse_recipe
from fangyan.tasks.extractive_qa.decoding import SpanOutput
from fangyan.tasks.extractive_qa.task import ExtractiveQA, ExtractiveQAConfig
from fangyan.training.loaded_data import load_data
from fangyan.training.workload import Workload
from tiny_tokenizers import wordpiece

CONTEXT = "我哋去 睇戲 我哋"


def record(*answers, question="去睇", context=CONTEXT):
    return {"question": question, "context": context, "answers": [
        {"text": text, "start": start} for text, start in answers
    ]}  # fmt: skip


ONE = [record(("睇戲", 4)), record(("我哋", 0), ("我哋去", 0))]


def recipe(folder, records, **sections):
    path = folder / "train.jsonl"
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    content = {
        "name": "tiny",
        "task": {"name": "extractive_qa"},
        "data": {"format": "jsonl", "train": str(path), "dev": str(path)},
        "model": {"path": "cantonese-electra", "pretrained": False},
    }
    return parse_recipe(content | sections)


def example(fields):
    return Example({**fields, "answers": tuple(fields["answers"])}, "file:1", "")


def test_first_answer_is_learned():
    task, tokenizer = ExtractiveQA(), Tokenizer(wordpiece())
    sequences = task.tokenize([example(part) for part in [*ONE, record()]], tokenizer, 32)
    assert [sequence.targets for sequence in sequences] == [[5.0, 6.0], [2.0, 3.0], [0.0, 0.0]]
    assert [sequence.labels for sequence in sequences] == [[0] + [IGNORE_INDEX] * 8] * 3
    scored = task.tokenize_scored([example(part) for part in ONE], tokenizer, 32)
    assert [sequence.input_ids for sequence in scored] == [s.input_ids for s in sequences[:2]]
    assert not any(sequence.targets for sequence in scored)


def test_answers_are_joined_and_scored():
    task = ExtractiveQA(may_be_none=True)
    examples = [example(part) for part in [*ONE, record()]]
    outputs = [SpanOutput(2, 0, 1, 0.0, 1.0, 2.0), SpanOutput(0, 4, 6, 1.0, 0.0, 2.0)]
    outputs += [SpanOutput(1, 0, 2, 1.0, 0.0, 2.0), SpanOutput(1, 2, 3, 0.5, 3.0, 2.0)]
    assert task.metrics(examples, outputs) == dict.fromkeys(task.metric_names, 100.0)
    assert task.report(examples, outputs) is None


def test_task_follows_the_data(tmp_path):
    data = load_data(recipe(tmp_path, [*ONE, record()]))
    assert data.task.may_be_none
    assert data.task.label_counts(data.splits)["train"] == {"with an answer": 2, "without": 1}
    assert data.task.metric_names == ("f1", "exact_match", "answerable_f1", "unanswerable_f1")
    data = load_data(recipe(tmp_path, ONE))
    assert not data.task.may_be_none
    assert data.task.label_counts(data.splits) == {}


def test_export_says_what_an_answer_may_be():
    task = ExtractiveQA(7, True)
    found = ExtractiveQAConfig.from_export(task.export_config(), None)
    assert (found.max_answer_tokens, found.may_be_none) == (7, True)
    for config in ({}, {"max_answer_tokens": 0, "may_be_none": True}, {"max_answer_tokens": 7}):
        with pytest.raises(ValueError, match="expected a number of sub-words and a bool"):
            ExtractiveQAConfig.from_export(config, None)


def test_findings_count_what_cannot_be_learned(tmp_path):
    long = "我哋" * 300
    records = [*ONE, record((long, 0), context=long), record(("我", 0), question=long), record()]
    (tmp_path / "dev.jsonl").write_text(json.dumps(record()), encoding="utf-8")
    workload = Workload(recipe(tmp_path, records))
    findings = [str(finding) for finding in workload.findings]
    source = tmp_path / "train.jsonl"
    assert (
        "data.train: 1 of its 5 examples have an answer that no sub-words of a sequence stand for, and are "
        f"not learned, such as {source}:3 ('{long[:40]}')"
    ) in findings
    assert (
        "data.train: 1 of its 5 examples have a question of more than three quarters of a sequence, and its "
        f"end is not read, such as of {source}:4"
    ) in findings
    assert {workload.sequences[i].example for i in range(len(workload.sequences))} == {0, 1, 3, 4}


def test_answers_that_are_all_lost_are_an_error(tmp_path):
    long = "我哋" * 300
    with pytest.raises(UserError, match="data.train: none of its 1 examples makes a sequence to learn from"):
        Workload(recipe(tmp_path, [record((long, 0), context=long)]))


def test_questions_that_are_new_to_the_model_are_found(tmp_path):
    dev = tmp_path / "dev.jsonl"
    dev.write_text(json.dumps(record()), encoding="utf-8")
    found = recipe(tmp_path, ONE)
    found = found.model_copy(update={"data": found.data.model_copy(update={"dev": str(dev)})})
    content = "\n".join(map(str, load_data(found).findings))
    assert "data.dev: 1 questions have no answer, but all of train have one" in content


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"objective": {"label_smoothing": 0.1}}, "objective.label_smoothing: is for one class"),
        ({"train": {"token_masking": 0.1}}, "train.token_masking: is 0.1, which means nothing"),
    ],
)
def test_sections_that_mean_nothing_are_refused(tmp_path, sections, message):
    with pytest.raises(UserError, match=message):
        Workload(recipe(tmp_path, ONE, **sections))
