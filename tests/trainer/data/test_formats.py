"""Reading the user's own files: right, and wrong in every way that people manage."""

import json

import pytest
from fangyan.data.example import Example
from fangyan.data.formats import parse_data
from fangyan.data.splits import read_examples, write_examples
from fangyan.errors import UserError

CONLL = "-DOCSTART- -X-\n\n我\tO\n香港\tB-LOC\n\n\n你 O\n"


def write(tmp_path, text, name="train.conll"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(path, format):
    return parse_data({"format": format, "train": str(path)}, "test").read_files([str(path)])


def pairs(example):
    return example.fields["tokens"], example.fields["tags"]


def test_conll_read(tmp_path):
    path = write(tmp_path, "\ufeff" + CONLL.replace("\n", "\r\n"))
    first, second = read(path, "conll")
    assert pairs(first) == (("我", "香港"), ("O", "B-LOC"))
    assert first.source == f"{path}:3"
    assert pairs(second) == (("你",), ("O",))
    assert second.source == f"{path}:7"


def test_conll_read_token_with_a_space_between_tabs(tmp_path):
    (example,) = read(write(tmp_path, "New York\tB-LOC\n"), "conll")
    assert example.fields["tokens"] == ("New York",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tO\nb\tO\tx\n", r"train.conll:2: 3 columns, expected 2 \(token, tag\)"),
        ("a O\nb\n", r"train.conll:2: 1 columns, expected 2"),
        ("\tO\n", r"train.conll:1: 2 columns|train.conll:1: 1 columns"),
        (b"a O\n\xff\xfe O\n", r"train.conll:2: byte 1 is not UTF-8"),
    ],
)
def test_conll_read_damaged(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, text), "conll")


def test_jsonl_read(tmp_path):
    path = write(tmp_path, json.dumps({"tokens": ["a", "b"], "tags": ["n", "v"], "id": 3}) + "\n\n")
    (example,) = read(path, "jsonl")
    assert (*pairs(example), example.source) == (("a", "b"), ("n", "v"), f"{path}:1")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "train.conll:1: not JSON"),
        ("[1]", "expected an object with tokens and tags, found list"),
        ('{"tokens": ["a"]}', "tags is 'None', expected a list of non-empty strings"),
        ('{"tokens": "a", "tags": ["n"]}', "tokens is 'a', expected a list"),
        ('{"tokens": ["a"], "tags": ["n", "v"]}', "1 tokens but 2 tags, expected as many"),
    ],
)
def test_jsonl_read_damaged(tmp_path, line, message):
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, line + "\n"), "jsonl")


def test_text_read(tmp_path):
    path = write(tmp_path, "今日天氣好好\n\n 多謝 \n", "train.txt")
    first, second = read(path, "text")
    assert (first.fields, first.source) == ({"text": "今日天氣好好"}, f"{path}:1")
    assert (second.fields, second.source) == ({"text": "多謝"}, f"{path}:3")


def test_common_voice_load_needs_fractions():
    with pytest.raises(UserError, match="test: data: common_voice is one list of sentences"):
        parse_data({"format": "common_voice", "train": ["a.txt"]}, "test")
    splits = parse_data({"format": "common_voice", "dev": 0.05, "test": 0.05}, "test").load(seed=0)
    assert sum(map(len, splits.values())) == 9_444
    assert 0.05 * 9_444 <= len(splits["test"]) < 0.06 * 9_444
    assert splits["dev"]


def test_load_missing_file(tmp_path):
    data = parse_data({"format": "conll", "train": str(tmp_path / "nowhere.conll")}, "test")
    with pytest.raises(UserError, match=r"nowhere.conll: no such file"):
        data.load(seed=0)


def test_load_empty_split(tmp_path):
    train, dev = write(tmp_path, CONLL), write(tmp_path, "\n", "dev.conll")
    data = parse_data({"format": "conll", "train": str(train), "dev": str(dev)}, "test")
    with pytest.raises(UserError, match=r"data.dev: no example in .*dev.conll, expected at least one"):
        data.load(seed=0)


def test_load_fractions_hold_out_whole_groups_and_are_seeded(tmp_path):
    sentences = [f"w{i % 40}\tn\n\n" for i in range(100)]  # every sentence two or three times
    path = str(write(tmp_path, "".join(sentences)))
    data = parse_data({"format": "conll", "train": path, "dev": 0.1, "test": 0.2}, "test")
    splits = data.load(seed=0)
    words = {name: {example.fields["tokens"] for example in examples} for name, examples in splits.items()}
    assert not words["train"] & words["dev"]
    assert not (words["train"] | words["dev"]) & words["test"]
    assert sum(map(len, splits.values())) == 100
    assert len(splits["test"]) >= 20
    assert list(splits) == ["train", "dev", "test"]
    assert data.load(seed=0) == splits
    assert data.load(seed=1) != splits


def test_read_examples_of_write_examples(tmp_path):
    examples = [
        Example({"tokens": ("我", "\u2028"), "tags": ("B-r", "B-w")}, "a.conll:1", "g"),
        Example({"text": "多謝\n晒"}, "b.txt:2", "h"),
    ]
    path = tmp_path / "splits" / "dev.jsonl"
    write_examples(path, examples)
    assert read_examples(path) == examples
    with path.open("a", encoding="utf-8") as file:
        file.write('{"fields": 3}\n')
    with pytest.raises(UserError, match=r"dev.jsonl:3: damaged, expected an example as fangyan writes it"):
        read_examples(path)
    with pytest.raises(UserError, match=r"none.jsonl: no such file"):
        read_examples(tmp_path / "none.jsonl")
