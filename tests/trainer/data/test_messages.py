"""Conversations in each form that files have them."""

import json

import pytest
from fangyan.data.formats import parse_data
from fangyan.errors import UserError

TALK = [{"role": "user", "content": "食咗飯未?"}, {"role": "assistant", "content": "食咗喇"}]
MESSAGES = tuple(TALK)


def read(folder, record, format="jsonl", **fields):
    path = folder / f"train.{format}"
    path.write_text(
        json.dumps(record, ensure_ascii=False) if isinstance(record, dict) else record, encoding="utf-8"
    )
    fields.setdefault("columns", {"messages": "messages"})
    data = parse_data({"format": format, "train": str(path), **fields}, "test")
    assert data.provided == ("messages",)
    return [example.fields["messages"] for example in data.read(path)]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": TALK},
        {"conversations": [{"from": "human", "value": "食咗飯未?"}, {"from": "gpt", "value": "食咗喇"}]},
        {"conversations": TALK},
        {"instruction": "食咗飯未?", "input": "", "output": "食咗喇"},
        {"instruction": "食咗飯未?", "output": "食咗喇"},
    ],
)
def test_usual_files_need_no_columns(tmp_path, record):
    assert read(tmp_path, record) == [MESSAGES]


def test_columns_of_other_names(tmp_path):
    assert read(tmp_path, {"chat": TALK}, columns={"messages": "chat"}) == [MESSAGES]
    columns = {"instruction": "q", "input": "more", "output": "a"}
    (talk,) = read(tmp_path, {"q": "譯:", "more": "係", "a": "yes"}, columns=columns)
    assert talk[0]["content"] == "譯:\n\n係"


def test_table_of_translations(tmp_path):
    table = "yue,en\n食咗飯未?,Have you eaten?\n,\n"
    columns = {"source": "en", "target": "yue"}
    (talk,) = read(tmp_path, table, "csv", columns=columns, prompt="Say it in Cantonese: {source}")
    assert talk == (
        {"role": "user", "content": "Say it in Cantonese: Have you eaten?"},
        {"role": "assistant", "content": "食咗飯未?"},
    )
    assert read(tmp_path, table, "csv", columns=columns)[0][0]["content"] == "Have you eaten?"
    with pytest.raises(UserError, match="train.csv:2: en is empty, expected text"):
        read(tmp_path, "yue,en\n食咗飯未?,\n", "csv", columns=columns)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "x"}, "train.jsonl:1: messages is 'None', expected a list of messages"),
        ({"messages": []}, "train.jsonl:1: messages is '[]', expected a list of messages"),
        ({"messages": TALK[:1]}, "messages has no message of the assistant's, expected an answer to learn"),
        (
            {"messages": [{"role": "boss", "content": "x"}]},
            "message 1 is of 'boss', expected a role of system",
        ),
        ({"messages": [{"from": "alien", "value": "x"}]}, "message 1 is of 'alien', expected a role of"),
        (
            {"messages": [*TALK, {"role": "assistant", "content": " "}]},
            "message 3 (assistant) is ' ', expected",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "message 1 (user) is 'None', expected text"),
        ({"messages": ["x"]}, "message 1 is of 'None', expected a role"),
        ({"instruction": "x", "output": ""}, "train.jsonl:1: output is empty, expected text"),
    ],
)
def test_what_is_no_conversation_is_refused(tmp_path, record, message):
    with pytest.raises(UserError) as error:
        read(tmp_path, record)
    assert message in str(error.value)


@pytest.mark.parametrize("prompt", ["no field", "{source} {source}", "{target}", "{source", "{0}"])
def test_prompt_has_one_field(prompt):
    content = {"format": "jsonl", "train": "x", "columns": {"source": "a", "target": "b"}, "prompt": prompt}
    with pytest.raises(UserError, match=r"expected a text with \{source\} in it, once"):
        parse_data(content, "test")


def test_prompt_without_source_is_refused():
    with pytest.raises(UserError, match="prompt is given, but columns has no source and target"):
        parse_data({"format": "jsonl", "train": "x", "prompt": "{source}"}, "test")
