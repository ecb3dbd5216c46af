"""Files by name: compressed, by pattern, empty; and why a fraction cannot be held out."""

import gzip
import importlib

import pytest
from fangyan.data import example
from fangyan.data.compression import open_file, stem, suffix
from fangyan.data.example import read_lines
from fangyan.data.formats import parse_data
from fangyan.errors import UserError
from fangyan.tasks.token_classification.config import TokenClassificationConfig

CONLL = "我\tO\n\n去\tX\n\n"


def conll(**fields):
    return parse_data({"format": "conll", **fields}, "test")


def compress(path, text):
    with open_file(path, "wt", encoding="utf-8") as file:
        file.write(text)


@pytest.mark.parametrize("name", ["a.conll", "a.conll.gz", "a.conll.zst", "a.CONLL.GZ"])
def test_read_compressed(tmp_path, name):
    if name.endswith("zst"):
        pytest.importorskip("backports.zstd")
    path = tmp_path / name
    compress(path, CONLL)
    assert (suffix(path), stem(path)) == (".conll", "a")
    assert [example.source for example in conll(train=str(path)).read(path)] == [f"{path}:1", f"{path}:3"]
    # Several compressed files one after the other are one.
    path.write_bytes(path.read_bytes() * 2)
    assert len(list(read_lines(path))) == 8


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_read_compressed_damaged(tmp_path, ending):
    module = pytest.importorskip("backports.zstd") if ending == "zst" else gzip
    path = tmp_path / f"a.conll.{ending}"
    for content in (CONLL.encode(), module.compress(CONLL.encode() * 999)[:-9]):
        path.write_bytes(content)
        with pytest.raises(
            UserError, match=rf"a.conll.{ending}: cannot be decompressed: .*a whole .{ending} file"
        ):
            list(read_lines(path))


def test_read_zst_without_its_package(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    (tmp_path / "a.zst").write_bytes(b"")
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match="a.zst: needs the package backports.zstd, which is not installed"):
        list(read_lines(tmp_path / "a.zst"))


def test_files_by_pattern(tmp_path):
    for name in ("b.conll", "a.conll", "c.txt"):
        (tmp_path / name).write_text(f"{name}\tO\n", encoding="utf-8")
    data = conll(train=[str(tmp_path / "*.conll")])
    assert [e.fields["tokens"] for e in data.read_files(data.train)] == [("a.conll",), ("b.conll",)]
    with pytest.raises(UserError, match=r"x\*.conll: no file has such a name"):
        data.read_files([str(tmp_path / "x*.conll")])
    with pytest.raises(UserError, match="a folder, expected files, such as"):
        data.read_files([str(tmp_path)])


@pytest.mark.parametrize(
    ("text", "fields", "message"),
    [
        (
            "a\tO\n\n" * 5,
            {"dev": 0.1},
            "data.dev: 0.1 of 5 examples leaves none to train on: identical sentences",
        ),
        (
            "a\tO\n\nb\tO\n\n",
            {"dev": 0.9},
            "data.dev: 0.9 of 2 examples leaves none to train on: they are 2 groups",
        ),
        ("", {}, "data.train: no example in .*train.conll, expected at least one"),
        ("# newpar\n\n", {}, "data.train: no example in .*train.conll, expected at least one"),
    ],
)
def test_load_says_why_a_split_is_empty(tmp_path, text, fields, message):
    (tmp_path / "train.conll").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        conll(train=str(tmp_path / "train.conll"), **fields).load(seed=0)


def test_build_refuses_a_file_of_one_tag(tmp_path):
    (tmp_path / "train.conll").write_text("a\tO\nb\tO\n\nc\tO\n", encoding="utf-8")
    data = conll(train=str(tmp_path / "train.conll"), dev=0.5)
    with pytest.raises(UserError, match="data.train: all of its 2 tags are O, expected something to learn"):
        TokenClassificationConfig().build(data.load(seed=0), data)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_line_without_end_is_refused(tmp_path, monkeypatch, name):
    """Of what may be a few kilobytes, compressed."""
    monkeypatch.setattr(example, "LONGEST_LINE", 1000)
    path = tmp_path / name
    with open_file(path, "wt", encoding="utf-8") as file:
        file.write("x" * 999 + "\n" + "x" * 1001)
    lines = read_lines(path)
    assert next(lines) == (1, "x" * 999)
    with pytest.raises(UserError, match=f"{name}:2: more than 1,000 bytes in a line"):
        next(lines)
