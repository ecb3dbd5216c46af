"""Files that predict writes in their own format, in a locale that has no UTF-8."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fangyan.cli import app
from fangyan.data.example import Example
from fangyan.errors import UserError
from fangyan.inference.annotate import format_of
from fangyan.tasks.causal_lm.predictor import TextGenerator

WORD = "{0}\t{1}\t_\t{2}\t_\t_\t2\tdep\t_\t{3}\n"
TREEBANK = "".join(
    f"# text = 佢{verb}\n"
    + WORD.format(1, "佢", "PRON", "SpaceAfter=No")
    + WORD.format(2, verb, "VERB", "_")
    + "\n"
    for verb in "食睇去講行買賣寫讀聽"
)
CORPUS = {"format": "hkcancor", "content": "sentence_types", "dev": ["FC-001_v2"]}
# Python decides by these on its own, unless told not to.
NO_UTF8 = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}


def recipe(folder, task=None, **data):
    folder.mkdir(exist_ok=True)
    content = {"name": "x", "data": data, **({"task": task} if task else {})}
    (folder / "recipe.yaml").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_format_of_a_file(tmp_path):
    run = recipe(
        tmp_path / "run", format="conll", train=["a.bio.gz"], columns={"token": 2, "tag": 3}, dev=0.5
    )
    model = tmp_path / "model"
    for name in ("f.conll", "f.bio", "f.bio.gz", "f.tsv"):
        data = format_of(run, Path(name)) if name != "f.tsv" else format_of(model, Path(name))
        assert (data.format, data.columns) == ("conll", None if name == "f.tsv" else {"token": 2, "tag": 3})
    assert format_of(run, Path("f.jsonl.zst")).format == "jsonl"
    assert format_of(run, Path("f.txt")) is None
    other = recipe(tmp_path / "other", format="conll", train="train.txt")  # as CoNLL 2003's are named
    assert format_of(other, Path("test.txt")).format == "conll"
    assert format_of(model, Path("f")) is None
    assert format_of(run, Path("f.txt"), "jsonl").format == "jsonl"
    assert format_of(model, Path("f.conllu"), "{format: conllu, column: xpos}").column == "xpos"


@pytest.mark.parametrize(
    ("name", "wanted", "message"),
    [
        (
            "f.conllu",
            None,
            "f.conllu: read as conllu, of which --format '{format: conllu, FIELD: VALUE}' says more: "
            "data.column: missing",
        ),
        ("f.txt", "text", "--format: a text file of text has no place for tags, expected conll, "),
        ("f.txt", "word", "--format: data.format: found 'word', expected one of"),
    ],
)
def test_format_of_a_file_refuses(tmp_path, name, wanted, message):
    with pytest.raises(UserError, match=re.escape(message)):
        format_of(tmp_path, Path(name), wanted)


def test_format_of_a_file_for_a_language_model(tmp_path):
    data = {"format": "csv", "train": "a.csv", "columns": {"text": "tweet"}}
    run = recipe(tmp_path / "run", task={"name": "causal_lm"}, **data)
    assert format_of(run, Path("f.txt")) is None
    for name in ("f.csv", "f.conll"):
        with pytest.raises(
            UserError, match=f"{name}: the model of .*run writes text, expected one that pred"
        ):
            format_of(run, Path(name))


def test_format_of_a_file_for_a_classifier(tmp_path):
    columns = {"text": "tweet", "label": "dialect"}
    data = {"format": "csv", "train": "a.csv", "columns": columns}
    run = recipe(tmp_path / "run", task={"name": "sequence_classification"}, **data)
    assert format_of(run, Path("f.csv")).columns == columns
    assert format_of(run, Path("f.jsonl")).columns == {"text": "text", "label": "label"}
    assert format_of(run, Path("f.tsv")).format == "csv"
    assert format_of(run, Path("f.txt")) is None
    with pytest.raises(UserError, match="f.conll: .*a conll file of tokens and tags has no place for label"):
        format_of(run, Path("f.conll"))
    corpus = recipe(tmp_path / "corpus", task={"name": "sequence_classification"}, **CORPUS)
    assert format_of(corpus, Path("sentences")) is None  # as conversations are named
    wanted = "{format: jsonl, columns: {text: a, label: b}}"
    assert format_of(run, Path("f.txt"), wanted).columns == {"text": "a", "label": "b"}
    with pytest.raises(
        UserError, match="--format: a conll file of tokens and tags has no place for label, exp"
    ):
        format_of(run, Path("f.txt"), "conll")
    model = tmp_path / "model"  # exported
    model.mkdir()
    content = {"model_type": "bert", "fangyan": {"task": "extractive_qa"}}
    (model / "config.json").write_text(json.dumps(content), encoding="utf-8")
    assert set(format_of(model, Path("f.jsonl")).columns) == {"question", "context", "answers"}
    for damaged in ("{", '{"model_type": "bert", "fangyan": [1]}'):  # loading says more
        (model / "config.json").write_text(damaged, encoding="utf-8")
        assert format_of(model, Path("f.jsonl")).provided == ("tokens", "tags")


def test_format_of_a_file_for_a_model_of_several_data_sets(tmp_path):
    members = [
        {"name": "a", "format": "conll", "train": "a.txt", "columns": {"token": 2, "tag": 3}},
        {"format": "conll", "train": "b.txt", "columns": {"token": 1, "tag": 4}},
    ]
    run = recipe(tmp_path / "run", format="sources", sources=members)
    for source, token in (("a", 2), ("source-2", 1)):
        assert format_of(run, Path("b.txt"), source=source).columns["token"] == token
    with pytest.raises(
        UserError, match="--source is missing: the run's data sets differ in how b.txt would be"
    ):
        format_of(run, Path("b.txt"))
    damaged = recipe(tmp_path / "damaged", sources=[{"name": "a", "train": "b.txt"}])
    assert format_of(damaged, Path("b.txt")) is None
    same = recipe(tmp_path / "same", format="sources", sources=[members[0], members[0] | {"name": "b"}])
    assert format_of(same, Path("b.txt")).columns["token"] == 2
    assert format_of(run, Path("b.jsonl")).format == "jsonl"


def test_annotate_is_for_models_that_label():
    with pytest.raises(
        UserError, match="this file needs a model that predicts tags, labels or answers, found"
    ):
        TextGenerator.annotate(None, [Example({"tokens": ("a",)}, "a:1", "a")])


@pytest.mark.slow
def test_predict_writes_the_input_format_in_a_locale_without_utf8(tmp_path, monkeypatch, capsys):
    """The file system's encoding is ASCII then, in which no run could be named 粤语."""
    (tmp_path / "train.conllu").write_text(TREEBANK, encoding="utf-8")

    def fangyan(*arguments, locale="C"):
        environment = os.environ | NO_UTF8 | {"LC_ALL": locale, "LANG": locale, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "fangyan", *arguments]
        result = subprocess.run(
            [os.fsencode(word) for word in command], cwd=tmp_path, env=environment, capture_output=True
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout.decode("utf-8"), result.stderr.decode("utf-8")

    data = "{format: conllu, column: upos, train: train.conllu, dev: train.conllu}"
    _, err = fangyan(
        "train", "cantonese-pos", "name=粤语", f"data={data}", "train.epochs=4", "train.batch_tokens=64"
    )
    assert "粤语: examples train 10" in err
    run = "runs/粤语"
    assert os.fsencode(tmp_path / run).decode("utf-8").endswith(run)
    assert "粤语" in (tmp_path / run / "model/README.md").read_text(encoding="utf-8")
    bare = TREEBANK.replace("PRON", "_").replace("VERB", "_")
    (tmp_path / "輸入.conllu").write_text(bare, encoding="utf-8")
    out, _ = fangyan("predict", run, "--input", "輸入.conllu", locale="zh_CN.GBK")
    assert out == TREEBANK
    fangyan("predict", run, "--input", "輸入.conllu", "--output", "輸入.conllu", "--probabilities", "1")
    lines = (tmp_path / "輸入.conllu").read_text(encoding="utf-8").splitlines()
    assert lines[1].startswith("1\t佢\t_\tPRON\t_\t_\t2\tdep\t_\tSpaceAfter=No|Probabilities=PRON:")
    assert len(lines) == len(TREEBANK.splitlines())
    assert not list(tmp_path.glob(".partial*"))
    monkeypatch.chdir(tmp_path)
    app(["predict", run, "佢 食"], standalone_mode=False)
    assert capsys.readouterr().out == "佢/PRON 食/VERB\n"
    with pytest.raises(
        UserError, match="^--probabilities: is for --input with a CoNLL, JSON lines or CSV file, found"
    ):
        app(["predict", run, "佢", "--probabilities", "1"], standalone_mode=False)
    with pytest.raises(UserError, match="^--json: is for text, found a file of format conllu$"):
        app(["predict", run, "--input", "輸入.conllu", "--json"], standalone_mode=False)
