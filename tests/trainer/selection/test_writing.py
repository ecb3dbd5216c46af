"""Files of selected sentences: ready to correct, and read by the same recipe once they are."""

import json
from pathlib import Path

import fangyan
import pytest
from fangyan.cli import app
from fangyan.data.formats import parse_data
from fangyan.errors import UserError
from fangyan.selection.writing import DOUBT
from tiny_exports import classifier, tagger

TEXTS = ["我食飯", "你飲茶", "今日去街", "佢今日食飯"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tagger(tmp_path_factory.mktemp("writing") / "model")


@pytest.fixture
def raw(tmp_path):
    (tmp_path / "raw.txt").write_text("\n".join(["", *TEXTS, TEXTS[0]]), encoding="utf-8")
    return tmp_path / "raw.txt"


def fangyan_select(*arguments):
    app(["select", *map(str, arguments)], standalone_mode=False)


def run_of(folder, model, data):
    """A run folder whose recipe has a format of its own, without files that could be left out."""
    folder.mkdir()
    (folder / "model").symlink_to(model)
    recipe = {"name": "x", "data": {"train": "gone", **data}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return folder


FORMATS = [
    ("conll", {"format": "conll"}),
    ("conll", {"format": "conll", "columns": {"token": 2, "tag": 4}}),
    ("conll", {"format": "conll", "columns": {"token": 3, "tag": 1}, "token_prefix": "yue:"}),
    ("conll", {"format": "conll", "separator": " "}),
    ("conllu", {"format": "conllu", "column": "xpos"}),
    ("conllu", {"format": "conllu", "column": "misc.Seg", "tokens": "characters"}),
    ("jsonl", {"format": "jsonl"}),
    ("jsonl", {"format": "jsonl", "columns": {"tokens": "words", "tags": "pos"}}),
    ("csv", {"format": "csv"}),
    ("tsv", {"format": "csv", "quoted": False}),
]


@pytest.mark.parametrize(("ending", "data"), FORMATS)
def test_selected_file_is_read_by_the_runs_recipe(tmp_path, model, raw, capsys, ending, data):
    run = run_of(tmp_path / "run", model, {"train": f"gone.{ending}", **data})
    output = tmp_path / f"selected.{ending}"
    fangyan_select(run, "--input", raw, "--number", 3, "--output", output)
    err = capsys.readouterr().err
    assert "fangyan: the run's own data cannot be read, and may be selected again (gone." in err
    assert "fangyan: 3 of 5 sentences of " in err
    examples = list(parse_data({**data, "train": str(output)}, "").read(output))
    tags = {
        str(found.tags)
        for found in fangyan.load(model).predict("".join(e.fields["tokens"]) for e in examples)
    }
    assert {str(example.fields["tags"]) for example in examples} == tags
    assert len({example.fields["tokens"] for example in examples} & {tuple(text) for text in TEXTS}) == 3
    before = output.read_text(encoding="utf-8")
    with pytest.raises(UserError, match="it exists, and may be corrected; expected a new file"):
        fangyan_select(run, "--input", raw, "--output", output)
    assert output.read_text(encoding="utf-8") == before


def test_conll_has_other_tags_of_those_in_doubt(model, raw, capsys):
    fangyan_select(model, "--input", raw, "--number", 1)
    source, *lines = capsys.readouterr().out.splitlines()
    assert source.startswith(f"# source = {raw}:")
    comments = [line for line in lines if line.startswith("# ")]
    rows = [line.split("\t") for line in lines[len(comments) :] if line]
    for comment in comments:
        place, token, first, *_ = comment.removeprefix("# ").replace(" = ", " ").split()
        assert rows[int(place) - 1][0] == token
        assert float(first.rpartition(":")[2]) < DOUBT or not first.startswith(rows[int(place) - 1][1])
    assert len(comments) == len(rows)  # a model at random weights is sure of nothing


def test_lines_of_a_file_keep_what_else_they_have(tmp_path, model, capsys):
    lines = [
        json.dumps({"id": i, "tokens": list(text), "tags": ["B-n"] * len(text)})
        for i, text in enumerate(TEXTS)
    ]
    (tmp_path / "pool.jsonl").write_text("\n".join(lines), encoding="utf-8")
    fangyan_select(model, "--input", tmp_path / "pool.jsonl", "--number", 2, "--output", tmp_path / "o.jsonl")
    found = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(found) == 2
    for record in found:
        assert "".join(record["tokens"]) == TEXTS[record["id"]]
        assert len(record["probabilities"]) == len(record["tags"])
    table = "id\ttokens\n" + "".join(f"{i}\t{' '.join(text)}\n" for i, text in enumerate(TEXTS))
    (tmp_path / "pool.tsv").write_text(table.rstrip("\n"), encoding="utf-8")
    wanted = ["--format", "{format: csv}"]
    fangyan_select(model, "--input", tmp_path / "pool.tsv", *wanted, "--output", tmp_path / "o.tsv")
    header, *rows = (tmp_path / "o.tsv").read_text(encoding="utf-8").splitlines()
    assert header == "id\ttokens\ttags\tprobabilities"
    assert sorted(row.split("\t")[0] for row in rows) == ["0", "1", "2", "3"]


def test_a_byte_order_mark_is_of_no_sentence(tmp_path, model, capsys):
    (tmp_path / "pool.conll").write_text(
        "\ufeff" + "\n\n".join("\n".join(t) for t in TEXTS), encoding="utf-8"
    )
    (tmp_path / "pool.csv").write_text("\ufefftokens\n" + "\n".join(map(" ".join, TEXTS)), encoding="utf-8")
    for ending in ("conll", "csv"):
        output = tmp_path / f"o.{ending}"
        fangyan_select(model, "--input", tmp_path / f"pool.{ending}", "--output", output)
        assert "\ufeff" not in output.read_text(encoding="utf-8")
        assert len(list(parse_data({"format": ending, "train": "x"}, "").read(output))) == 4


def test_selecting_again_replaces_comments(tmp_path, model, raw, capsys):
    for source, output in ((raw, "a.conll"), (tmp_path / "a.conll", "b.conll")):
        fangyan_select(model, "--input", source, "--strategy", "k_centre", "--output", tmp_path / output)
    first, second = (
        sorted((tmp_path / name).read_text(encoding="utf-8").split("\n\n")) for name in ("a.conll", "b.conll")
    )
    assert first == second


def test_spans_of_a_text(tmp_path, model, raw):
    columns = {"text": "sentence", "spans": "words"}
    run = run_of(tmp_path / "run", model, {"format": "jsonl", "columns": columns, "tokens": "characters"})
    fangyan_select(run, "--input", raw, "--output", tmp_path / "o.jsonl")
    records = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted(record["sentence"] for record in records) == sorted(TEXTS)
    assert all(record["words"][0]["start"] == 0 for record in records)


@pytest.mark.parametrize("ending", ["jsonl", "csv", None])
@pytest.mark.parametrize("pairs", [False, True])
def test_classes_of_texts(tmp_path, capsys, ending, pairs):
    model = classifier(tmp_path / "model", ["0", "1"], pairs=pairs)
    texts = [f'{text},\t"{text}' if pairs else f'{text}, "' for text in TEXTS]
    (tmp_path / "raw.txt").write_text("\n".join(texts), encoding="utf-8")
    output = ["--output", tmp_path / f"o.{ending}"] if ending else []
    columns = {"text": "text", **({"pair": "pair"} if pairs else {}), "label": "label"}
    if ending:
        run = run_of(tmp_path / "run", model, {"format": ending, "columns": columns})
        recipe = tmp_path / "run/recipe.yaml"
        content = recipe.read_text(encoding="utf-8")
        task = '"task": {"name": "sequence_classification"}, "data"'
        recipe.write_text(content.replace('"data"', task), encoding="utf-8")
    elif pairs:
        return  # an export alone does not say that a file has pairs
    else:
        run = model
    fangyan_select(run, "--input", tmp_path / "raw.txt", *output)
    path = tmp_path / f"o.{ending}"
    if not ending:
        path = tmp_path / "o.jsonl"
        path.write_text(capsys.readouterr().out, encoding="utf-8")
    data = parse_data({"format": ending or "jsonl", "columns": columns, "train": str(path)}, "")
    found = list(data.read(path))
    shown = ["\t".join(e.fields[n] for n in ("text", "pair") if n in e.fields) for e in found]
    assert sorted(shown) == sorted(texts)
    assert [e.fields["label"] for e in found] == [str(p) for p in fangyan.load(model).predict(shown)]


def test_select_refuses_files(tmp_path, model, raw):
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(UserError, match="empty.txt: no example in it, expected at least one"):
        fangyan_select(model, "--input", tmp_path / "empty.txt")
    with pytest.raises(UserError, match="gone.txt: no such file"):
        fangyan_select(model, "--input", tmp_path / "gone.txt")
    with pytest.raises(UserError, match="--output .*raw.txt: the file of --input, expected another"):
        fangyan_select(model, "--input", raw, "--output", raw)
    with pytest.raises(UserError, match="o.conllu: read as conllu, .*data.column: missing"):
        fangyan_select(model, "--input", raw, "--output", tmp_path / "o.conllu")
    with pytest.raises(UserError, match="--label: needs --output"):
        fangyan_select(model, "--input", raw, "--label")
    with pytest.raises(UserError, match="strategy: found 'best', expected one of"):
        fangyan_select(model, "--input", raw, "--strategy", "best")


def test_select_refuses_what_its_format_cannot_say(tmp_path, model):
    pool = tmp_path / "pool.jsonl"
    for tokens in (["我\t你"], ["我\n你"], ["-DOCSTART-"]):
        pool.write_text(json.dumps({"tokens": tokens}), encoding="utf-8")
        output = tmp_path / "o.conll"
        with pytest.raises(UserError, match="pool.jsonl:1: .* cannot be written as conll, expected another"):
            fangyan_select(model, "--input", pool, "--output", output)
        assert not Path(output).exists()
    pool.write_text(json.dumps({"tokens": ["我 你", "#", "# x = y"]}), encoding="utf-8")
    fangyan_select(model, "--input", pool, "--output", tmp_path / "o.conll")
    (example,) = parse_data({"format": "conll", "train": "x"}, "").read(tmp_path / "o.conll")
    assert example.fields["tokens"] == ("我 你", "#", "# x = y")
