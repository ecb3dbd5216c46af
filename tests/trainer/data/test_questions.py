"""Questions of SQuAD's kinds: as objects, as cells, as its own files; and each in every wrong way."""

import json

import pytest
from fangyan.data.formats import parse_data
from fangyan.errors import UserError

COLUMNS = {name: name for name in ("question", "context", "answers")}
CONTEXT = "佢尋日去咗旺角, 今日去旺角"
FIELDS = {"question": "去邊度", "context": CONTEXT, "answers": ({"text": "旺角", "start": 5},)}


def read(folder, format, content, columns=True):
    name = {"csv": "train.csv", "jsonl": "train.jsonl"}.get(format, "train.json")
    path = folder / name
    path.write_text(content, encoding="utf-8")
    more = {"columns": COLUMNS} if columns else {}
    return list(parse_data({"format": format, "train": str(path), **more}, "test").read_files([str(path)]))


def line(answers, **fields):
    return json.dumps(
        {"question": "去邊度", "context": CONTEXT, "answers": answers, **fields}, ensure_ascii=False
    )


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["旺角"], "answer_start": [5]},
        {"text": ["旺角"], "start": [5]},
        [{"text": "旺角", "start": 5}],
        [{"text": "旺角", "answer_start": 5, "id": 7}],
    ],
)
def test_answers_are_read_as_they_come(tmp_path, answers):
    (example,) = read(tmp_path, "jsonl", line(answers))
    assert example.fields == FIELDS
    assert (example.source, example.group) == (f"{tmp_path}/train.jsonl:1", CONTEXT)


@pytest.mark.parametrize("answers", [[], {"text": [], "answer_start": []}])
def test_no_answer_is_none(tmp_path, answers):
    (example,) = read(tmp_path, "jsonl", line(answers))
    assert example.fields["answers"] == ()


def test_cells_hold_json(tmp_path):
    answers = json.dumps({"text": ["旺角"], "answer_start": [5]}, ensure_ascii=False).replace('"', '""')
    rows = f'question,context,answers\n去邊度,"{CONTEXT}","{answers}"\n去邊度,"{CONTEXT}",\n'
    first, second = read(tmp_path, "csv", rows)
    assert first.fields == FIELDS
    assert second.fields["answers"] == ()


def test_rows_of_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{**FIELDS, "answers": {"text": ["旺角"], "answer_start": [5]}, "id": "x"}]
    path = tmp_path / "train.parquet"
    datasets.Dataset.from_list(rows).to_parquet(path)
    config = parse_data({"format": "datasets", "train": str(path), "columns": COLUMNS}, "test")
    assert [example.fields for example in config.read(path)] == [FIELDS]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (None, "answers is 'None', expected a list of text and start, or text and answer_start as two"),
        ("旺角", "answers is '旺角', expected a list of text and start"),
        ({"text": ["旺角"], "answer_start": []}, "expected a list of text and start"),
        ({"text": "旺角", "answer_start": 5}, "expected a list of text and start"),
        ([5], "text of answer 1 is 'None', expected text"),
        ([{"text": "旺角", "start": 5}, {"text": " ", "start": 5}], "text of answer 2 is ' ', expected text"),
        ([{"text": "旺角", "start": "5"}], "start of answer 1 is '5', expected a number of characters"),
        ([{"text": "旺角", "start": -8}], "start of answer 1 is '-8', expected a number"),
        ([{"text": "旺角", "start": True}], "start of answer 1 is 'True', expected a number"),
        (
            [{"text": "旺角", "start": 4}],
            "answer '旺角' is not at 4 of the context, where '咗旺' is; it is at 5, 12 (characters",
        ),
        (
            [{"text": "中環", "start": 99}],
            "is not at 99 of the context, where '' is; it does not occur in it",
        ),
    ],
)
def test_answers_that_do_not_fit_are_refused(tmp_path, answers, message):
    with pytest.raises(UserError) as error:
        read(tmp_path, "jsonl", line([]) + "\n" + line(answers))
    assert str(error.value).startswith(f"{tmp_path}/train.jsonl:2: ")
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["question", "context"])
def test_empty_text_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=f"train.jsonl:1: {name} is empty, expected text"):
        read(tmp_path, "jsonl", line([], **{name: " "}))


@pytest.mark.parametrize("cell", ["旺角", "{'text': ['旺角']}", "[1", '{"text": array([5])}'])
def test_cell_that_is_no_json_is_refused(tmp_path, cell):
    quoted = cell.replace('"', '""')
    with pytest.raises(UserError, match=r"train.csv:2: not JSON"):
        read(tmp_path, "csv", f'question,context,answers\n去,去,"{quoted}"\n')


def squad(*qas):
    paragraphs = [{"context": CONTEXT, "qas": list(qas)}]
    return {"version": "v2.0", "data": [{"title": "T", "paragraphs": paragraphs}]}


def test_squad_is_read_nested(tmp_path):
    right = {"question": "去邊度", "id": "1", "answers": [{"text": "旺角", "answer_start": 5}]}
    none = {"question": "幾時", "id": "2", "answers": [], "is_impossible": True, "plausible_answers": [1]}
    content = squad(right, none)
    content["data"].append({"paragraphs": content["data"][0]["paragraphs"]})
    found = read(tmp_path, "squad", json.dumps(content, ensure_ascii=False, indent=1), columns=False)
    assert [example.fields["question"] for example in found] == ["去邊度", "幾時"] * 2
    assert found[0].fields == FIELDS
    assert found[1].fields["answers"] == ()
    assert found[1].source == f"{tmp_path}/train.json:data[0].paragraphs[0].qas[1]"
    assert [example.group for example in found] == ["T", "T", CONTEXT, CONTEXT]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "train.json:data: 'None', expected a list of objects, as SQuAD's files have them"),
        ('{"data": {}}', "train.json:data: '{}', expected a list of objects"),
        ('{"data": [{"paragraphs": 5}]}', "train.json:data[0].paragraphs: '5', expected a list"),
        (
            '{"data": [{"paragraphs": [{"qas": [1]}]}]}',
            "train.json:data[0].paragraphs[0].qas: '[1]', expected",
        ),
        (
            '{"data": [{"paragraphs": [{"qas": [{"question": "x"}]}]}]}',
            "qas[0]: context is 'None', expected a",
        ),
        (
            json.dumps(squad({"question": "x"})),
            "qas[0]: answers is 'None', expected a list of text and start",
        ),
        (
            json.dumps(squad({"question": "x", "answers": [{"text": "旺角", "answer_start": 4}]})),
            "train.json:data[0].paragraphs[0].qas[0]: answer '旺角' is not at 4 of the context",
        ),
        (
            json.dumps(
                squad(
                    {"question": "x", "is_impossible": True, "answers": [{"text": "旺角", "answer_start": 5}]}
                )
            ),
            "qas[0]: is_impossible is true, but it has answers, expected none",
        ),
        ('{"data": [', "train.json: not JSON"),
    ],
)
def test_squad_that_is_damaged_is_refused(tmp_path, content, message):
    with pytest.raises(UserError) as error:
        read(tmp_path, "squad", content, columns=False)
    assert message in str(error.value)
