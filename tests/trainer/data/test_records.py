"""Named values: JSON lines, tables and data sets of ``datasets``."""

import csv
import json
import random

import pytest
from fangyan.data.example import Annotation
from fangyan.data.formats import parse_data
from fangyan.errors import UserError
from hypothesis import given, settings
from hypothesis import strategies as st

TEXT = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1)
# Of a table: what has to be quoted, and what looks as if it had.
CELL = st.text(st.sampled_from("a \n\",;|\t'é"))
SPANS = {"text": "Jo wohnt  in Sankt Gallen", "spans": [{"start": 13, "end": 25, "label": "LOC"}]}


def parse(format, path, **fields):
    return parse_data({"format": format, "train": str(path), **fields}, "test")


def write(folder, text, name):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(path, format, **fields):
    return [example.fields for example in parse(format, path, **fields).read(path)]


def annotated(data, path, tags, probabilities=None, spans=True):
    stream = ((own, probabilities, own if spans else None) for own in tags)
    return "".join(data.annotate(path, lambda examples: (Annotation(*next(stream)) for _ in examples)))


@pytest.mark.parametrize("token", [" ", "\u200b", "\u200d", "\u0301", "\ufe0f"])
def test_jsonl_tokens_that_look_empty(tmp_path, token):
    line = json.dumps({"tokens": ["我", token], "tags": ["A", "B"], "id": 1}, ensure_ascii=False) + "\n"
    path = write(tmp_path, line, "a.jsonl")
    assert read(path, "jsonl") == [{"tokens": ("我", token), "tags": ("A", "B")}]
    assert annotated(parse("jsonl", path), path, [("A", "B")]) == line


def test_jsonl_read_spans(tmp_path):
    path = write(tmp_path, json.dumps(SPANS) + "\n" + '{"text": " ", "spans": []}\n', "a.jsonl")
    (words,) = read(path, "jsonl")
    assert words["tokens"] == ("Jo", "wohnt", "in", "Sankt", "Gallen")
    assert words["tags"] == ("O", "O", "O", "B-LOC", "I-LOC")
    assert words["spaces"] == (True,) * 5
    (characters,) = read(path, "jsonl", tokens="characters")
    assert "".join(characters["tokens"]) == "JowohntinSanktGallen"
    assert characters["tags"] == ("O",) * 9 + ("B-LOC",) + ("I-LOC",) * 10
    assert [i for i, space in enumerate(characters["spaces"]) if space] == [1, 6, 8, 13, 19]


def test_jsonl_spaces(tmp_path):
    """What a format with spaces has, JSON lines keep: the tokenizer sees them."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"tokens": ["I", "\'m", "in"], "spaces": [false, true, true]}\n', encoding="utf-8")
    data = parse("jsonl", path)
    (example,) = data.read_unlabelled(path)
    assert example.fields == {"tokens": ("I", "'m", "in"), "spaces": (False, True, True)}
    assert data.blank(example, path) == path.read_text(encoding="utf-8")
    for spaces in ("[true]", '"yes"', "[1, 0, 1]"):
        path.write_text(f'{{"tokens": ["I", "am", "in"], "spaces": {spaces}}}\n', encoding="utf-8")
        with pytest.raises(UserError, match=r"a.jsonl:1: spaces is .*, expected true or false for each of 3"):
            list(data.read_unlabelled(path))


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([{"start": 14, "end": 25, "label": "LOC"}], r"a.jsonl:1: span 14-25 \('ankt Gallen'\) cuts a token"),
        ([*SPANS["spans"], {"start": 13, "end": 18, "label": "X"}], "span 13-25 .* overlaps another"),
        ([{"start": 13, "end": 99, "label": "LOC"}], "counted in the 25 characters of the text"),
        ([[13, 25, "LOC"]], r"a.jsonl:1: span \[13, 25, 'LOC'\], expected start, end and label"),
        (None, "a.jsonl:1: spans is 'None', expected a list"),
    ],
)
def test_jsonl_refuses_spans(tmp_path, spans, message):
    path = write(tmp_path, json.dumps(SPANS | {"spans": spans}) + "\n", "a.jsonl")
    with pytest.raises(UserError, match=message):
        read(path, "jsonl")


def test_jsonl_annotate(tmp_path):
    path = write(
        tmp_path,
        '{"tags":["X", "Y"] , "tokens": ["\\u6211", "a\\"b"],"n": [1.0 , {"tags": []}] }\r\n\n'
        '{"tokens": ["b"]}',
        "a.jsonl",
    )
    probabilities = ((("N", 0.987654),), (("V", 0.5),))
    assert annotated(parse("jsonl", path), path, [("N", "V"), ("N",)]) == (
        '{"tags":["N", "V"] , "tokens": ["\\u6211", "a\\"b"],"n": [1.0 , {"tags": []}] }\r\n\n'
        '{"tokens": ["b"], "tags": ["N"]}'
    )
    assert '"probabilities": [[["N", 0.9877]], [["V", 0.5]]]}' in annotated(
        parse("jsonl", path), path, [("N", "V"), ("N",)], probabilities
    )
    path = write(tmp_path, json.dumps({"text": SPANS["text"]}) + "\n", "b.jsonl")
    written = annotated(parse("jsonl", path), path, [("B-PER", "O", "O", "B-LOC", "I-LOC")])
    spans = [{"start": 0, "end": 2, "label": "PER"}, *SPANS["spans"]]
    assert json.loads(written) == {"text": SPANS["text"], "spans": spans}
    with pytest.raises(
        UserError, match=r"b.jsonl:1: the model's tags are of no spans, expected tokens in place"
    ):
        annotated(parse("jsonl", path), path, [("N", "V", "P", "N", "N")], spans=False)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1), st.booleans())
def test_jsonl_reads_what_was_written(tmp_path_factory, rows, ascii):
    tokens, tags = zip(*rows, strict=True)
    line = (
        json.dumps({"tokens": tokens, "tags": tags}, ensure_ascii=ascii).replace("\\u0000", "\\u0001") + "\n"
    )
    path = write(tmp_path_factory.mktemp("jsonl"), line.replace("\0", "\1"), "a.jsonl")
    (fields,) = read(path, "jsonl")
    assert fields["tokens"] == tuple(token.replace("\0", "\1") for token in tokens)
    (again,) = read(write(path.parent, annotated(parse("jsonl", path), path, [tags]), "b.jsonl"), "jsonl")
    assert again == {"tokens": fields["tokens"], "tags": tags}


def test_jsonl_refuses_half_of_a_character(tmp_path):
    path = write(tmp_path, '{"tokens": ["\\ud83d"], "tags": ["X"]}\n', "a.jsonl")
    with pytest.raises(UserError, match="a.jsonl:1: half of a surrogate pair"):
        read(path, "jsonl")


def test_columns_say_what_is_read(tmp_path):
    path = write(
        tmp_path,
        '{"sentence": "Grüezi mitenand", "dialect": "ZH", "words": ["a"], "ner": ["O"]}\n',
        "a.jsonl",
    )
    texts = {"text": "sentence", "label": "dialect"}
    assert read(path, "jsonl", columns=texts) == [{"text": "Grüezi mitenand", "label": "ZH"}]
    assert parse("jsonl", path, columns={"text": "sentence"}).provided == ("text",)
    words = {"tokens": "words", "tags": "ner"}
    assert read(path, "jsonl", columns=words) == [{"tokens": ("a",), "tags": ("O",)}]
    with pytest.raises(UserError, match="test: data: columns has tokens, text; expected tokens and tags"):
        parse("jsonl", path, columns={"tokens": "words", "text": "sentence"})
    with pytest.raises(UserError, match="tokens is characters, but columns names a text that has no tags"):
        parse("jsonl", path, columns=texts, tokens="characters")


def test_jsonl_annotate_texts(tmp_path):
    lines = '{"tweet": "Ja", "dialect": "BE", "n": 1}\n{"tweet": " "}\n{"tweet":"Nei"}\n'
    path = write(tmp_path, lines, "a.jsonl")
    data = parse("jsonl", path, columns={"text": "tweet", "label": "dialect"})
    assert valued(data, path, [{"label": "ZH"}, {"label": 1, "probabilities": [["1", 0.5]]}]) == (
        '{"tweet": "Ja", "dialect": "ZH", "n": 1}\n{"tweet": " "}\n'
        '{"tweet":"Nei", "dialect": 1, "probabilities": [["1", 0.5]]}\n'
    )
    path = write(tmp_path, '{"question": "Wo?", "context": "Da.", "answers": 7}\n', "q.jsonl")
    data = parse("jsonl", path, columns={name: name for name in ("question", "context", "answers")})
    answer = [{"text": "Da", "start": 0}]
    assert json.loads(valued(data, path, [{"answers": answer}]))["answers"] == answer


def valued(data, path, values):
    stream = iter(values)
    return "".join(data.annotate(path, lambda examples: (Annotation(values=next(stream)) for _ in examples)))


def test_csv_annotate(tmp_path):
    text = '\ufeff"id",tweet,dialect,"n"\r\n1,"""ja"", seit er,\nund gaht",,7\r\n\r\n2, ,x,""\r\n'
    text += '3,Grüezi,"BE",""'
    path = write(tmp_path, text, "a.csv")
    data = parse("csv", path, columns={"text": "tweet", "label": "dialect"})
    assert valued(data, path, [{"label": "ZH"}, {"label": ["a,b", "c"]}]) == (
        '\ufeff"id",tweet,dialect,"n"\r\n1,"""ja"", seit er,\nund gaht",ZH,7\r\n\r\n2, ,x,""\r\n'
        '3,Grüezi,"[""a,b"", ""c""]",""'
    )
    found = [{"label": 'B"E', "probabilities": [["B", 0.5]]}, {"label": 0.25, "probabilities": []}]
    lines = valued(data, path, found).split("\r\n")
    assert lines[0] == '\ufeff"id",tweet,dialect,"n",probabilities'
    assert lines[1].endswith('gaht","B""E",7,"[[""B"", 0.5]]"')
    assert lines[2:] == ["", '2, ,x,"",', '3,Grüezi,0.25,"",[]']
    bare = write(tmp_path, "text\tn\na\t1\n\t\nb\t2\n", "b.tsv")
    data = parse("csv", bare, columns={"text": "text", "label": "label"}, quoted=False)
    assert (
        valued(data, bare, [{"label": 'x"'}, {"label": "y"}]) == 'text\tn\tlabel\na\t1\tx"\n\t\t\nb\t2\ty\n'
    )
    with pytest.raises(UserError, match=r"b.tsv: 'a\\tb' has the separator in it, which can only be written"):
        valued(data, bare, [{"label": "a\tb"}] * 2)
    assert valued(data, write(tmp_path, "text\n", "c.tsv"), []) == "text\n"
    # Columns that share a name, or have none, stay what they are; so does a mark within the file.
    path = write(tmp_path, ",text,\n1,hello,9\n\ufeffa,x,\n", "d.csv")
    data = parse("csv", path, columns={"text": "text", "label": "label"})
    assert valued(data, path, [{"label": "A"}] * 2) == ",text,,label\n1,hello,9,A\n\ufeffa,x,,A\n"


def test_csv_annotate_tokens(tmp_path):
    path = write(tmp_path, 'tokens,tags\na b,X Y\n"[""a"", ""b c""]",\n', "a.csv")
    assert annotated(parse("csv", path), path, [("N", "V"), ("N", "V")]) == (
        'tokens,tags\na b,N V\n"[""a"", ""b c""]","[""N"", ""V""]"\n'
    )
    path = write(tmp_path, f"text\n{SPANS['text']}\n", "b.csv")
    written = annotated(parse("csv", path), path, [("O", "O", "O", "B-LOC", "I-LOC")])
    (spans,) = read(write(tmp_path, written, "c.csv"), "csv")
    assert spans["tags"] == ("O", "O", "O", "B-LOC", "I-LOC")


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(CELL, CELL), min_size=1), st.sampled_from(",\t;|"), st.sampled_from(["\n", "\r\n"]))
def test_csv_has_what_was_predicted(tmp_path_factory, rows, separator, end):
    folder = tmp_path_factory.mktemp("csv")
    with (folder / "a.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=separator, lineterminator=end)
        writer.writerows([("text", "n"), *((text + "x", text) for text, _ in rows)])
    data = parse("csv", folder / "a.csv", columns={"text": "text", "label": "label"}, separator=separator)
    written = valued(data, folder / "a.csv", [{"label": label + "y"} for _, label in rows])
    with (folder / "b.csv").open("w", encoding="utf-8", newline="") as file:
        file.write(written)
    with (folder / "b.csv").open(encoding="utf-8", newline="") as file:
        _, *found = csv.reader(file, delimiter=separator)
    assert found == [[text + "x", text, label + "y"] for text, label in rows]


def test_csv_read_quoted_cells(tmp_path):
    text = '\ufeffid,tweet,dialect\r\n1,"""ja"", seit er,\nund gaht",ZH\r\n\r\n2,Grüezi,BE\r\n'
    path = write(tmp_path, text, "a.csv")
    data = parse("csv", path, columns={"text": "tweet", "label": "dialect"})
    first, second = data.read(path)
    assert first.fields == {"text": '"ja", seit er,\nund gaht', "label": "ZH"}
    assert (first.source, second.source) == (f"{path}:2", f"{path}:5")


def test_csv_read_tokens(tmp_path):
    path = write(tmp_path, 'tokens\ttags\n我 去\tr v\n"[""New York"", ""x""]"\tB-LOC O\n', "a.tsv")
    assert [fields["tokens"] for fields in read(path, "csv")] == [("我", "去"), ("New York", "x")]
    path = write(tmp_path, 'words\tner\n" x\tO O\n', "b.tsv")
    columns = {"tokens": "words", "tags": "ner"}
    assert read(path, "csv", columns=columns, quoted=False) == [{"tokens": ('"', "x"), "tags": ("O", "O")}]


@pytest.mark.parametrize("cell", ["['我', '食']", "['我' '食']", "['我']"])
def test_csv_refuses_lists_as_python_prints_them(tmp_path, cell):
    path = write(tmp_path, f'tokens,tags\n"{cell}","[""A"", ""B""]"\n', "a.csv")
    with pytest.raises(UserError, match="a.csv:2: a list as Python prints it, expected one of JSON, such as"):
        read(path, "csv")


def test_csv_words_in_brackets(tmp_path):
    path = write(tmp_path, "tokens,tags\n[ Applaus ],O N O\n", "a.csv")
    assert read(path, "csv") == [{"tokens": ("[", "Applaus", "]"), "tags": ("O", "N", "O")}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,label\na,b,c\n", "a.csv:2: 3 cells, expected 2 as in the header"),
        ("tweet\na\n", "a.csv:1: no column 'text' in the header tweet; data.columns names others"),
        ("text,text\n", "a.csv:1: more than one column 'text'"),
        ('text\n\n"a\nb', "a.csv:3: no row of a table: unexpected end of data; data.quoted: false"),
        ('text\n"a"b\n', "a.csv:2: no row of a table"),
    ],
)
def test_csv_refuses(tmp_path, text, message):
    path = write(tmp_path, text, "a.csv")
    with pytest.raises(UserError, match=message):
        read(path, "csv", columns={"text": "text"})


@settings(deadline=None, max_examples=100)
@given(
    st.lists(TEXT.filter(lambda text: text.strip() and "\0" not in text), min_size=1), st.sampled_from(",\t;")
)
def test_csv_reads_what_was_written(tmp_path_factory, texts, separator):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=separator).writerows([["n", "text"], *enumerate(texts)])
    assert read(path, "csv", columns={"text": "text"}, separator=separator) == [
        {"text": text} for text in texts
    ]


@pytest.mark.filterwarnings("ignore:Cannot (locate|pickle)")  # of dill, at a type of pyarrow
def test_datasets_parquet_and_folders(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["O", "B-LOC"])
    features = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(names), "x": names}
    )
    rows = {"tokens": [["z", "Züri"], ["ja"]], "ner_tags": [[0, 1], [0]], "x": [0, 1]}
    whole = datasets.Dataset.from_dict(rows, features=features)
    whole.to_parquet(tmp_path / "train.parquet")
    whole.save_to_disk(tmp_path / "folder")
    expected = [{"tokens": ("z", "Züri"), "tags": ("O", "B-LOC")}, {"tokens": ("ja",), "tags": ("O",)}]
    columns = {"tokens": "tokens", "tags": "ner_tags"}
    for path in (tmp_path / "train.parquet", tmp_path / "folder"):
        assert read(path, "datasets", columns=columns) == expected
    datasets.DatasetDict(train=whole).save_to_disk(tmp_path / "both")
    for path, message in (
        ("both", "both: has splits, expected one of .*both/train"),
        ("none", "none: cannot be"),
    ):
        with pytest.raises(UserError, match=message):
            read(tmp_path / path, "datasets", columns=columns)
    with pytest.raises(UserError, match="train.parquet:1: tags is 'None', expected a list"):
        read(tmp_path / "train.parquet", "datasets")


def test_datasets_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package of this name, which is not installed"):
        read(tmp_path / "a.parquet", "datasets")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[" * 100_000, "values are nested too deep"),
        ("[" * 100_000 + "]" * 100_000, "values are nested too deep"),
        ("9" * 5000, "a number of thousands of digits"),
        ('["\\ud800"]', "half of a surrogate pair"),
        ('["a"], "tags": ["b"]', "key 'tags' is there twice"),
        ('[{"a": 1, "a": 2}]', "key 'a' is there twice"),
    ],
)
def test_json_that_cannot_be_read(tmp_path, value, message):
    """Wherever it is: alone, in a field that is read or not, in a cell of a table."""
    line = f'{{"tokens": {value}, "tags": ["b"]}}'
    path = write(tmp_path, f"{line}\n", "a.jsonl")
    with pytest.raises(UserError, match=f"a.jsonl:1: .*{message}"):
        read(path, "jsonl")
    with pytest.raises(UserError, match=f"a.jsonl:1: .*{message}"):
        annotated(parse("jsonl", path), path, [("A",)])
    if value.startswith("[") and ", " not in value.partition("]")[2]:
        cell = '"' + value.replace('"', '""') + '"'
        path = write(tmp_path, f"tokens,tags\n{cell},b\n", "a.csv")
        with pytest.raises(UserError, match=f"a.csv:2: .*{message}"):
            read(path, "csv")


def test_csv_with_a_first_line_that_is_empty(tmp_path):
    path = write(tmp_path, "\ntokens,tags\na,b\n", "a.csv")
    with pytest.raises(UserError, match="a.csv:1: no column 'tokens' in the header"):
        read(path, "csv")


def test_damaged_parquet(tmp_path, capfd):
    pytest.importorskip("datasets")
    import pyarrow
    import pyarrow.parquet

    draw = random.Random(0)
    table = pyarrow.table({"text": [str(draw.getrandbits(2000)) for _ in range(200)]})
    pyarrow.parquet.write_table(table, tmp_path / "whole.parquet", compression="zstd")
    content = (tmp_path / "whole.parquet").read_bytes()
    third = len(content) // 3
    damaged = {
        "empty": b"",
        "cut": content[:third],
        "header": b"PAR1" + bytes(100) + b"PAR1",
        "middle": content[:third] + bytes(200) + content[third + 200 :],
        "no": b"tokens,tags\n",
    }
    for name, data in damaged.items():
        path = write(tmp_path, data, f"{name}.parquet")
        sentence = f"{name}.parquet: cannot be (loaded|read) by datasets: "
        with pytest.raises(UserError, match=sentence) as raised:
            read(path, "datasets", columns={"text": "text"})
        assert len(str(raised.value)) < 600
        assert capfd.readouterr().err == ""
