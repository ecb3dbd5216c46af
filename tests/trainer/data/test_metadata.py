"""What files say of their examples beside what is learned."""

import pytest
from fangyan.data.formats import parse_data
from fangyan.data.formats.hkcancor import HKCanCor, corpus_folder
from fangyan.errors import UserError

CONLLU = (
    "# speaker = Áine\n# sent_id=3\n# text: a\n1\ta\t_\tX\t_\t_\t_\t_\t_\t_\n\n1\tb\t_\tX\t_\t_\t_\t_\t_\t_\n"
)
CONLL = "# speaker = A B\n# dialect: gsw\n阿 X\n\n明 Y\n"
JSONL = '{"text": "a", "label": "x", "age": 7, "ok": true, "more": [1]}\n\n{"text": "b", "label": "y"}\n'
CSV = 'text,label,"who, then"\na,x,me\n\n"b\nb",y,\n'
CHAT = "@Begin\n*CHI:\tdog .\n%mor:\tn|dog .\n*MOT:\tyes\n\tdear .\n%mor:\tco|yes n|dear .\n@End\n"


@pytest.mark.parametrize(
    ("name", "content", "section", "expected"),
    [
        (
            "a.conllu",
            CONLLU,
            {"format": "conllu", "column": "upos"},
            [{"speaker": "Áine", "sent_id": "3", "text": "a"}, {}],
        ),
        ("a.conll", CONLL, {"format": "conll"}, [{"speaker": "A B", "dialect": "gsw"}, {}]),
        (
            "a.jsonl",
            JSONL,
            {"format": "jsonl", "columns": {"text": "text", "label": "label"}},
            [{"text": "a", "label": "x", "age": "7", "ok": "true"}, {"text": "b", "label": "y"}],
        ),
        (
            "a.csv",
            CSV,
            {"format": "csv", "columns": {"text": "text", "label": "label"}},
            [{"text": "a", "label": "x", "who, then": "me"}, {"text": "b\nb", "label": "y", "who, then": ""}],
        ),
        (
            "a.cha",
            CHAT,
            {"format": "chat"},
            [{"speaker": "CHI", "conversation": "a"}, {"speaker": "MOT", "conversation": "a"}],
        ),
    ],
)
def test_metadata_has_the_sources_of_the_examples(tmp_path, name, content, section, expected):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    several = {"format": "sources", "sources": [{**section, "name": "one", "train": str(path)}]}
    for data in (parse_data({**section, "train": str(path)}, ""), parse_data(several, "")):
        found = list(data.metadata(path))
        assert [source for source, _ in found] == [example.source for example in data.read(path)]
        assert [values for _, values in found] == expected


def test_metadata_of_the_corpus():
    path = corpus_folder() / "FC-R011_v.cha"
    for content in ("words", "sentence_types", "names"):
        data = HKCanCor(content=content)
        known = dict(data.metadata(path))
        assert {known[example.source]["conversation"] for example in data.read(path)} == {"FC-R011_v"}
        assert len({known[example.source]["speaker"] for example in data.read(path)}) > 1


def test_metadata_of_a_format_without(tmp_path):
    with pytest.raises(
        UserError, match="x.txt: format text has nothing to group examples by, expected conllu"
    ):
        parse_data({"format": "text", "train": "x.txt"}, "").metadata(tmp_path / "x.txt")
