"""What files are: each of these is small, and was met by somebody."""

import json
import os
from pathlib import Path

import pytest
from fangyan.errors import UserError
from fangyan.first_run.guess import MOST_EXAMPLES, guess

TALK = [{"role": "user", "content": "食咗飯未?"}, {"role": "assistant", "content": "食咗喇。"}]
QUESTION = {"question": "住喺邊度?", "context": "阿明住喺香港", "answers": [{"text": "香港", "start": 4}]}


def words(*rows):
    """Sentences of CoNLL-U: form, UPOS, XPOS and MISC of each word."""
    return "\n".join(
        "".join(
            "\t".join([str(i), form, "_", upos, xpos, "_", "0", "root", "_", misc]) + "\n"
            for i, (form, upos, xpos, misc) in enumerate(sentence, start=1)
        )
        for sentence in rows
    )


def lines(*records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def table(header, row, count=30):
    return header + "\n" + "".join(row.format(i=i, kind="abc"[i % 3]) + "\n" for i in range(count))


MULTI_WORD = (
    "# text = Zum Haus\n1-2\tZum" + "\t_" * 8 + "\n"
    "1\tZu\tzu\tADP\t_\t_\t3\tcase\t_\t_\n2\tdem\tder\tDET\t_\t_\t3\tdet\t_\t_\n"
    "2.1\tdas\t_\t_\t_\t_\t_\t_\t_\t_\n3\tHaus\tHaus\tNOUN\t_\t_\t0\troot\t_\t_\n"
)
CONLL_2003 = (
    "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\nGerman JJ B-NP B-MISC\n"
    "call NN I-NP O\n. . O O\n\nPeter NNP B-NP B-PER\nBlackburn NNP I-NP I-PER\n"
)
IOB1 = "West I-LOC\nGermany I-LOC\nis O\n\nPeter I-PER\nis O\nin O\nRome I-LOC\n"
CHARACTERS = "我\tB-r\n哋\tI-r\n去\tB-v\n飲\tB-v\n茶\tI-v\n\n佢\tB-r\n食\tB-v\n飯\tI-v\n"
TRANSCRIPT = "@UTF8\n@Begin\n*CHI:\tI want a cookie .\n%mor:\tpron|I verb|want det|a noun|cookie .\n@End\n"
SQUAD = {"data": [{"title": "a", "paragraphs": [{"context": QUESTION["context"], "qas": [QUESTION]}]}]}
SPANS = {"text": "Jo wohnt in Sankt Gallen", "spans": [{"start": 12, "end": 24, "label": "LOC"}]}
CUT = {"text": "我去香港", "spans": [{"start": 2, "end": 4, "label": "LOC"}]}
MANY = {"tokens": ["Anna", "wohnt", "da"], "ner_tags": ["B-PER", "O", "O"], "pos": ["N", "V", "A"]}

# By the file's name: its content, the format, the scheme, the tag or label column's question.
TAGGED = {
    "xx-ud-train.conllu": (MULTI_WORD, {"format": "conllu", "column": "upos"}, "plain"),
    "xpos.conllu": (
        words([("Haus", "_", "NN", "_"), ("gut", "_", "ADJ", "_")]),
        {"format": "conllu", "column": "xpos"},
        "plain",
    ),
    "ner.conllu": (
        words([("Bern", "_", "_", "NER=B-LOC"), ("ist", "_", "_", "_")]),
        {"format": "conllu", "column": "misc.NER"},
        "iob2",
    ),
    "eng.train": (CONLL_2003, {"format": "conll", "columns": {"token": 1, "tag": 4}}, "iob2"),
    "iob1.txt": (IOB1, {"format": "conll"}, "iob1"),
    "tab.tsv": ("Ich\tPRON\nbin\tAUX\n\nDu\tPRON\nbist\tAUX\n", {"format": "conll"}, "plain"),
    "bom.conll": ("\ufeffIch PRON\nbin AUX\n\nDu PRON\nbist AUX\n", {"format": "conll"}, "plain"),
    "first.conll": (
        "PRON\tIch\nAUX\tbin\nADV\tda\n\nPRON\tDu\nAUX\tbist\nADV\thier\n",
        {"format": "conll", "columns": {"token": 2, "tag": 1}},
        "plain",
    ),
    "numbered.conll": (
        "# text = Grüezi Anna\n1\tGrüezi\tO\n2\tAnna\tB-PER\n\n# text = ich bi d Eva\n"
        "1\tich\tO\n2\tbi\tO\n3\td\tO\n4\tEva\tB-PER\n",
        {"format": "conll", "columns": {"token": 2, "tag": 3}},
        "iob2",
    ),
    "wikiann.txt": (
        "nl:Jan B-PER\nnl:woont O\nnl:in O\nnl:Gent B-LOC\n\nnl:Piet B-PER\nnl:ook O\n",
        {"format": "conll", "token_prefix": "nl:"},
        "iob2",
    ),
    "characters.txt": (CHARACTERS, {"format": "conll", "tokens": "characters"}, "segmentation"),
    "bmes.txt": (
        "我 B\n哋 E\n去 S\n飲 B\n茶 E\n\n佢 S\n食 B\n飯 E\n",
        {"format": "conll", "tokens": "characters"},
        "segmentation",
    ),
    "iobes.conll": (
        "Anna B-PER\nMay E-PER\ngeht O\n\nBern S-LOC\nruht O\n",
        {"format": "conll"},
        "iobes",
    ),
    "tags.jsonl": (
        lines(*[{"tokens": ["Anna", "wohnt"], "tags": ["B-PER", "O"]}] * 3),
        {"format": "jsonl"},
        "iob2",
    ),
    "many.jsonl": (
        lines(*[MANY] * 3),
        {"format": "jsonl", "columns": {"tokens": "tokens", "tags": "ner_tags"}},
        "iob2",
    ),
    "spans.jsonl": (lines(SPANS), {"format": "jsonl"}, "iob2"),
    "cut.jsonl": (lines(CUT), {"format": "jsonl", "tokens": "characters"}, "iob2"),
    "cells.csv": (
        table("words,pos", "Good food number {i},ADJ NOUN NOUN NUM"),
        {"format": "csv", "columns": {"tokens": "words", "tags": "pos"}},
        "plain",
    ),
    "brown.cha": (TRANSCRIPT, {"format": "chat", "tier": "mor"}, "plain"),
}
OTHERS = {
    "labels.jsonl": (
        lines(*({"id": i, "text": f"呢間嘢好食 {i}", "label": "ab"[i % 2]} for i in range(9))),
        "sequence_classification",
        {"format": "jsonl"},
        {},
    ),
    "several.jsonl": (
        lines(*({"text": f"good {i}", "topics": [[], ["a"], ["a", "b"]][i % 3]} for i in range(9))),
        "sequence_classification",
        {"format": "jsonl", "columns": {"text": "text", "label": "topics"}},
        {},
    ),
    "several.csv": (
        table("text,label", 'Good food {i},"[""a"", ""b""]"'),
        "sequence_classification",
        {"format": "csv"},
        {},
    ),
    "sorted.jsonl": (
        lines(*({"text": f"good {i}", "label": "praise", "lang": "yue"} for i in range(9))),
        "sequence_classification",
        {"format": "jsonl"},
        {},
    ),
    "pairs.csv": (
        table("premise,hypothesis,gold", '"It rains, {i}",It is dry {i},{kind}'),
        "sequence_classification",
        {"format": "csv", "columns": {"text": "premise", "pair": "hypothesis", "label": "gold"}},
        {},
    ),
    "semicolons.csv": (
        table("text;dialect", "Grüezi mitenand {i};{kind}"),
        "sequence_classification",
        {"format": "csv", "separator": ";", "columns": {"text": "text", "label": "dialect"}},
        {},
    ),
    "quoted.csv": (
        table("\ufeffdialect,tweet", '{kind},"He said ""yallah"",\n\nand left {i}"'),
        "sequence_classification",
        {"format": "csv", "columns": {"text": "tweet", "label": "dialect"}},
        {},
    ),
    "unquoted.tsv": (
        table("text\tlabel", '"Grüezi" {i}\t{kind}'),
        "sequence_classification",
        {"format": "csv", "quoted": False},
        {},
    ),
    "stars.csv": (
        table("text,stars", "Good food {i},{i}") + "Bad food,7\n",
        "sequence_classification",
        {"format": "csv", "columns": {"text": "text", "label": "stars"}},
        {"kind": "regression"},
    ),
    "talks.jsonl": (lines({"id": 1, "messages": TALK}), "instruction", {"format": "jsonl"}, {}),
    "answer.jsonl": (lines({"messages": TALK[1:]}), "instruction", {"format": "jsonl"}, {}),
    "alpaca.jsonl": (
        lines({"instruction": "Say hi", "input": "", "output": "hi"}),
        "instruction",
        {
            "format": "jsonl",
            "columns": {"instruction": "instruction", "input": "input", "output": "output"},
        },
        {},
    ),
    "questions.jsonl": (lines(QUESTION), "extractive_qa", {"format": "jsonl"}, {}),
    "train-v1.1.json": (json.dumps(SQUAD), "extractive_qa", {"format": "squad"}, {}),
    "stories.txt": ("a long line " * 1000 + "\n\n", "causal_lm", {"format": "text"}, {}),
    "columns.jsonl": (
        lines({"id": "a", "story": "Once upon a time there was"}, {"id": "b", "story": "And then"}),
        "causal_lm",
        {"format": "jsonl", "columns": {"text": "story"}},
        {},
    ),
}
REFUSED = {
    "empty.txt": ("", "empty.txt: empty"),
    "blank.txt": ("\n \n\n", "blank.txt: empty"),
    "a.xlsx": (b"PK\x03\x04 and more", "a.xlsx: a ZIP archive, as Excel and Word write them"),
    "zeros.conllu": (bytes(range(256)), "zeros.conllu:1: byte 1 is NUL"),
    "latin.txt": ("Grüezi".encode("latin-1"), "iconv -f ENCODING -t UTF-8 latin.txt > NEW converts it"),
    "utf16.txt": ("Grüezi".encode("utf-16"), "utf16.txt:1: text in UTF-16, expected UTF-8"),
    "header.tsv": (
        "token\ttag\nIch\tPRON\nbin\tAUX\n\nDu\tPRON\nbist\tAUX\n",
        "header.tsv:1: a header (token tag), which CoNLL files have not",
    ),
    "one.conll": ("".join(f"w{i} {'NV'[i % 2]}\n" for i in range(300)), "no blank line in 300 lines"),
    "damaged.conllu": (
        words([(f"w{i}", "X", "_", "_") for i in range(30)]) + "31\tgut\t_\tADJ\n",
        "damaged.conllu:31: 4 columns, expected the 10 of CoNLL-U",
    ),
    "damaged.conll": ("a X\nb Y\n\n" * 20 + "c Y Z\n", "damaged.conll:61: 3 columns, expected 2"),
    "damaged.jsonl": ('{"text": "a", "label": "b"}\n{"text": "c",\n', "damaged.jsonl:2: not JSON"),
    "nested.jsonl": (
        '{"text": ' + "[" * 20_000,
        "nested.jsonl:1: not JSON that can be read: values are nested",
    ),
    "list.json": ('[\n{"text": "a"}\n]', "JSON, but not one object per line"),
    "missing.jsonl": (
        lines(*({"text": f"good {i}", "label": "ab"[i % 2] if i != 7 else None} for i in range(20))),
        "missing.jsonl:8: label is 'None', expected a class",
    ),
    "nothing.jsonl": (lines({"id": 1}, {"id": 2}), "nothing.jsonl: no text in id"),
    "data.csv": (table("Good food,a", "Good food number {i},{kind}"), "data.csv:1: no header (Good food, a)"),
    "uneven.csv": ("text,label\n" + "a,b,c\nd\n" * 9, "uneven.csv: no table"),
    "slashed.txt": ("Ich/PRON bin/AUX da/ADV\n" * 5, "words with a tag behind a slash (Ich/PRON)"),
}


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", TAGGED)
def test_guess_of_tags(tmp_path, name):
    content, format, scheme = TAGGED[name]
    found = guess(written(tmp_path, name, content))
    assert (found.task, found.format, found.scheme) == ("token_classification", format, scheme)
    assert 0.5 <= found.sureness <= 1
    assert found.is_whole
    assert any("can be read so" in reason for reason in found.reasons)


@pytest.mark.parametrize("name", OTHERS)
def test_guess_of_other_tasks(tmp_path, name):
    content, task, format, options = OTHERS[name]
    found = guess(written(tmp_path, name, content))
    assert (found.task, found.format, found.options, found.scheme) == (task, format, options, None)


@pytest.mark.parametrize("name", REFUSED)
def test_guess_refuses_in_one_sentence(tmp_path, monkeypatch, name):
    content, sentence = REFUSED[name]
    written(tmp_path, name, content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        guess(Path(name))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def answers(found):
    return [(answer.text.partition(":")[0], answer.guess) for answer in found.answers]


def test_guess_asks_for_the_column_where_several_have_tags(tmp_path):
    rows = [("Bern", "PROPN", "NE", "NER=B-LOC"), ("ist", "AUX", "VAFIN", "NER=O")]
    found = guess(written(tmp_path, "a.conllu", words(rows)))
    assert found.question == "Which column has the tags to learn?"
    assert [name for name, _ in answers(found)] == ["upos", "xpos", "misc.NER"]
    (_, first), _, (_, last) = answers(found)
    assert first.format == found.format == {"format": "conllu", "column": "upos"}
    assert (last.format["column"], last.scheme, last.question) == ("misc.NER", "iob2", None)
    assert last.sureness < first.sureness

    found = guess(written(tmp_path, "eng.train", CONLL_2003))
    assert [other.format["columns"]["tag"] for _, other in answers(found)] == [4, 3]


def test_guess_asks_what_types_and_numbers_mean(tmp_path):
    types = "Anna PER\nwohnt O\nin O\nBern LOC\n. O\n\nDas O\nist O\nPeter PER\n. O\n"
    found = guess(written(tmp_path, "io.conll", types))
    assert [(other.scheme, other.options) for _, other in answers(found)] == [
        ("io", {"scheme": "io"}),
        ("plain", {"scheme": "plain"}),
    ]
    stars = table("text,stars", "Good food {i},{i}", 6)
    found = guess(written(tmp_path, "stars.csv", stars))
    assert found.question.startswith("Are the numbers in stars (0, 1, 2, 3, 4, …) classes, or amounts")
    assert [other.options["kind"] for _, other in answers(found)] == ["single_label", "regression"]


def test_guess_asks_which_text_is_written_and_what_is_learnt_from_text(tmp_path):
    found = guess(written(tmp_path, "a.tsv", table("yue\tzh", "我哋今日去飲茶呀{i}\t我們今天去喝茶吧{i}")))
    assert (found.task, found.sureness, found.is_han) == ("instruction", 0.5, True)
    directions = [{"source": "yue", "target": "zh"}, {"source": "zh", "target": "yue"}]
    assert [other.format["columns"] for _, other in answers(found)] == directions
    found = guess(written(tmp_path, "a.txt", "佢話佢唔去\n聽日再講啦\n"))
    assert [other.task for _, other in answers(found)] == ["causal_lm", "masked_lm"]
    verses = guess(written(tmp_path, "verses.txt", "the sun\nis red\n\nthe sea\nis deep\n"))
    assert verses.sureness <= 0.6
    assert [other.task for _, other in answers(verses)] == ["token_classification", "causal_lm"]


def test_guess_tells_why_a_likelier_reading_failed(tmp_path):
    rows = [("Haus", "NOUN", "NN", "_"), ("gut", "_", "ADJ", "_"), ("da", "ADV", "ADV", "_")]
    found = guess(written(tmp_path, "partly.conllu", words(rows)))
    assert found.format["column"] == "xpos"
    assert found.sureness <= 0.5
    assert "partly.conllu:2: upos is _" in found.reasons[-1]


def test_guess_of_parquet_knows_the_names_of_classes(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict({"text": ["a b", "c d"] * 4, "label": [0, 1] * 4}, features).to_parquet(path)
    found = guess(path)
    assert (found.task, found.format) == ("sequence_classification", {"format": "datasets"})
    assert "(no, yes)" in " ".join(found.reasons)


def test_guess_reads_a_part_of_a_large_file(tmp_path):
    """200 MB, of which all but the beginning are zeros, at which a reader would stop."""
    path = written(tmp_path, "large.conll", "Ich PRON\nbin AUX\nda ADV\n\n" * 50_000)
    os.truncate(path, 200_000_000)
    found = guess(path)
    assert (found.examples, found.is_whole) == (MOST_EXAMPLES, False)
    assert "the first 3,000 examples can be read so" in found.reasons
