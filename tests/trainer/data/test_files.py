"""Reading the user's own files: right, and wrong in every way that people manage."""

import json

import pytest
from fangyan.data import load_parts
from fangyan.data.conll import read_conll
from fangyan.data.jsonl import read_jsonl
from fangyan.errors import UserError
from fangyan.recipe import Data

CONLL = "-DOCSTART- -X-\n\n我\tO\n香港\tB-LOC\n\n\n你 O\n"


def write(tmp_path, text, name="train.conll"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_conll(tmp_path):
    path = write(tmp_path, "\ufeff" + CONLL.replace("\n", "\r\n"))
    first, second = read_conll(path)
    assert (first.tokens, first.tags) == (("我", "香港"), ("O", "B-LOC"))
    assert first.source == f"{path}:3"
    assert second.tokens == ("你",)


def test_a_token_may_hold_a_space_between_tabs(tmp_path):
    (example,) = read_conll(write(tmp_path, "New York\tB-LOC\n"))
    assert example.tokens == ("New York",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tO\nb\tO\tx\n", r"train.conll:2: 3 columns, expected 2 \(token, tag\)"),
        ("a O\nb\n", r"train.conll:2: 1 columns, expected 2"),
        ("\tO\n", r"train.conll:1: 2 columns|train.conll:1: 1 columns"),
        (b"a O\n\xff\xfe O\n", r"train.conll:2: byte 1 is not UTF-8"),
    ],
)
def test_bad_conll(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_conll(write(tmp_path, text))


def test_jsonl(tmp_path):
    path = write(tmp_path, json.dumps({"tokens": ["a", "b"], "tags": ["n", "v"], "id": 3}) + "\n\n")
    (example,) = read_jsonl(path)
    assert (example.tokens, example.tags, example.source) == (("a", "b"), ("n", "v"), f"{path}:1")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "train.conll:1: not JSON"),
        ("[1]", "expected an object with tokens and tags, found list"),
        ('{"tokens": ["a"]}', "tags is 'None', expected a list of non-empty strings"),
        ('{"tokens": "a", "tags": ["n"]}', "tokens is 'a', expected a list"),
        ('{"tokens": ["a"], "tags": ["n", "v"]}', "1 tokens but 2 tags, expected a tag a token"),
    ],
)
def test_bad_jsonl(tmp_path, line, message):
    with pytest.raises(UserError, match=message):
        read_jsonl(write(tmp_path, line + "\n"))


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.conll: no such file"):
        load_parts(Data(format="conll", train=str(tmp_path / "nowhere.conll")), seed=0)


def test_an_empty_part(tmp_path):
    train, dev = write(tmp_path, CONLL), write(tmp_path, "\n", "dev.conll")
    with pytest.raises(UserError, match=r"data.dev: no sentence in it"):
        load_parts(Data(format="conll", train=str(train), dev=str(dev)), seed=0)


def test_fractions_hold_out_whole_groups_and_are_seeded(tmp_path):
    sentences = [f"w{i % 40}\tn\n\n" for i in range(100)]  # every sentence two or three times
    data = Data(format="conll", train=str(write(tmp_path, "".join(sentences))), dev=0.1, test=0.2)
    parts = load_parts(data, seed=0)
    words = {name: {example.tokens for example in examples} for name, examples in parts.items()}
    assert not words["train"] & words["dev"]
    assert not (words["train"] | words["dev"]) & words["test"]
    assert sum(map(len, parts.values())) == 100
    assert len(parts["test"]) >= 20
    assert list(parts) == ["train", "dev", "test"]
    assert load_parts(data, seed=0) == parts
    assert load_parts(data, seed=1) != parts
