"""Files beside the one to train on, and names of runs."""

import pytest
from fangyan.first_run.guess import guess
from fangyan.first_run.siblings import name_of, siblings

CONLL = "Ich PRON\nbin AUX\n\nDu PRON\nbist AUX\n"


@pytest.mark.parametrize(
    ("train", "dev", "test"),
    [
        ("xx-ud-train.txt", "xx-ud-dev.txt", "xx-ud-test.txt"),
        ("train.txt", "valid.txt", "test.txt"),
        ("NER-de-train.tsv", "NER-de-dev.tsv", "NER-de-test.tsv"),
        ("eng.train", "eng.testa", "eng.testb"),
    ],
)
def test_siblings_are_found_by_their_names(tmp_path, train, dev, test):
    for name in (train, dev, test):
        (tmp_path / name).write_text(CONLL, encoding="utf-8")
    path = tmp_path / train
    assert siblings(path, guess(path)) == {"dev": tmp_path / dev, "test": tmp_path / test}


def test_siblings_that_cannot_be_read_alike_are_none(tmp_path):
    for name, text in (("train.txt", CONLL), ("dev.txt", "only text\nand more of it\n"), ("test.txt", "")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "training-notes.txt").write_text(CONLL, encoding="utf-8")
    path = tmp_path / "train.txt"
    assert siblings(path, guess(path)) == {}
    alone = tmp_path / "training-notes.txt"
    assert siblings(alone, guess(alone)) == {}


def test_name_of_a_run(tmp_path):
    for name, expected in (
        ("sme_giella-ud-train.conllu", "sme_giella-ud"),
        ("train.conllu", "my-data"),
        ("我的 文字.txt.gz", "我的-文字"),
        ("strained.txt", "strained"),
        (".train", "my-data"),
    ):
        assert name_of(tmp_path / "my data" / name) == expected
