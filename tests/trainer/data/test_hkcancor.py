"""The real corpus, whole."""

from collections import Counter

import pytest
from fangyan.data.formats import parse_data
from fangyan.data.formats.hkcancor import HKCanCor, corpus_folder, written
from fangyan.errors import UserError

TEST = ["FC-025_v", "FC-055_v2", "FC-104_v2", "FC-106b_v2", "FC-109a_v2", "FC-R002b_v2"]


def hkcancor(**fields):
    return parse_data({"format": "hkcancor", **fields}, "test")


def test_hkcancor_read_every_conversation():
    files = sorted(corpus_folder().glob("*.cha"))
    data = HKCanCor()
    words = [example for path in files for example in data.read(path)]
    assert len(files) == 58
    assert len(words) == 16_162
    assert sum(len(example.fields["tokens"]) for example in words) == 153_656
    tags = Counter(tag for example in words for tag in example.fields["tags"])
    assert len(tags) == 94
    assert tags["w"] == 28_263  # punctuation
    assert "" not in tags


def test_hkcancor_read_characters_that_join_to_the_same_words():
    path = corpus_folder() / "FC-025_v.cha"
    words, characters = (list(HKCanCor(tokens=unit).read(path)) for unit in ("words", "characters"))
    assert len(words) == len(characters)
    for left, right in zip(words, characters, strict=True):
        assert "".join(left.fields["tokens"]) == "".join(right.fields["tokens"])
        begun = tuple(tag[2:] for tag in right.fields["tags"] if tag.startswith("B-"))
        assert begun == left.fields["tags"]
    assert words[0].fields == {"tokens": ("你", "講", "吖", "."), "tags": ("r", "v", "y", "w")}


def test_hkcancor_load_named_conversations():
    splits = hkcancor(tokens="characters", dev=["FC-048_v2"], test=TEST).load(seed=0)
    assert len(splits["test"]) == 2_128
    groups = {name: {example.group for example in examples} for name, examples in splits.items()}
    assert len(groups["train"]) == 51
    assert not groups["train"] & (groups["dev"] | groups["test"])


def test_hkcancor_load_fractions_are_whole_conversations():
    splits = hkcancor(dev=0.1, test=0.1).load(seed=3)
    groups = [{example.group for example in examples} for examples in splits.values()]
    assert sum(map(len, groups)) == 58
    assert 0.1 * 16_162 <= len(splits["dev"]) < 0.2 * 16_162


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": ["FC-999"]}, "data.test: no conversation 'FC-999' in"),
        (
            {"train": ["FC-025_v"], "dev": ["FC-025_v"]},
            "data.train: conversation 'FC-025_v' is also held out",
        ),
    ],
)
def test_hkcancor_load_conversations_that_do_not_fit(change, message):
    with pytest.raises(UserError, match=message):
        hkcancor(**change).load(seed=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("*A:\t你 好 .\n%mor:\tr|nei5 a|hou2\n", r"x.cha:1: 3 words but 2 tags on the %mor: line"),
        ("@Begin\n%mor:\tr|nei5\n", r"x.cha:2: a %mor: line with no speaker line"),
    ],
)
def test_hkcancor_read_damaged(tmp_path, text, message):
    path = tmp_path / "x.cha"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        list(HKCanCor(tokens="characters").read(path))
    with pytest.raises(UserError, match="no .cha file in it"):
        hkcancor(path=str(tmp_path / "empty")).load(seed=0)


def test_hkcancor_label_utterances_by_the_mark_that_ends_them():
    path = corpus_folder() / "FC-005b_v2.cha"
    examples = list(hkcancor(content="sentence_types").read(path))
    assert len(examples) == len(list(HKCanCor().read(path)))
    assert examples[4].fields == {"text": "搞錯啊", "label": "question"}
    assert examples[5].fields == {"text": "一個", "label": "statement"}
    assert not any(example.fields["text"].endswith((".", "?")) for example in examples)
    counts = Counter(
        example.fields["label"]
        for path in corpus_folder().glob("*.cha")
        for example in hkcancor(content="sentence_types").read(path)
    )
    assert counts == {"statement": 13_251, "question": 2_911}


def test_words_of_latin_letters_keep_a_space():
    words = ["搭", "MTR", "station", ",", "OK", "啦", "3", "個"]
    assert written(words) == "搭MTR station, OK啦3個"


def test_hkcancor_without_test_trains_on_the_same():
    dev = ["FC-005b_v2", "FC-033_v2"]
    apart = hkcancor(dev=dev, test=TEST).without_test()
    assert apart.test is None
    known = {path.stem for path in corpus_folder().glob("*.cha")}
    assert set(apart.train) == known - {*dev, *TEST}
    assert apart.load(0).keys() == {"train", "dev"}
    fraction = hkcancor(dev=dev, test=0.1)
    assert fraction.without_test() == fraction


def test_hkcancor_jyutping_and_replies_are_conversations():
    path = corpus_folder() / "FC-005b_v2.cha"
    (first, *_) = hkcancor(content="jyutping").read(path)
    question, answer = first.fields["messages"]
    assert question["content"].startswith("daap3 di1 , loeng5 saam1 hou4zi2 sin1zi3 daap3 gau3")
    assert answer["content"].startswith("搭啲,兩三毫子先至搭夠再寄啲新嘅,")
    replies = list(hkcancor(content="replies").read(path))
    assert [message["content"] for message in replies[0].fields["messages"]] == ["搞錯啊?", "一個."]
    assert replies[0].source == "FC-005b_v2.cha:30"
    for example in replies:
        assert example.fields["messages"][0]["content"].endswith("?")


def test_hkcancor_names_are_of_words_or_of_characters():
    path = corpus_folder() / "FC-105_v2.cha"
    counts = Counter()
    for words, characters in zip(
        hkcancor(content="names").read(path),
        hkcancor(content="names", tokens="characters").read(path),
        strict=True,
    ):
        assert "".join(words.fields["tokens"]) == "".join(characters.fields["tokens"])
        tags = [characters.fields["tags"]]
        for word, tag in zip(words.fields["tokens"], words.fields["tags"], strict=True):
            assert tags[0][0] == tag
            assert set(tags[0][1 : len(word)]) <= {tag.replace("B-", "I-")}
            tags[0] = tags[0][len(word) :]
        counts.update(tag for tag in words.fields["tags"] if tag.startswith("B-"))
    assert counts == {"B-PER": 30, "B-LOC": 29, "B-MISC": 5, "B-ORG": 3}


def test_hkcancor_answers_are_where_they_say():
    path = corpus_folder() / "FC-001_v2.cha"
    examples = list(hkcancor(content="answers").read(path))
    by_source = {}
    for example in examples:
        for answer in example.fields["answers"]:
            assert example.fields["context"].startswith(answer["text"], answer["start"])
        by_source.setdefault(example.source, []).append(example.fields)
    for asked in by_source.values():
        assert any(fields["answers"] for fields in asked)
        assert sum(not fields["answers"] for fields in asked) <= 1
        assert len({fields["question"] for fields in asked}) == len(asked)
    asked = {fields["question"]: fields["answers"] for fields in by_source["FC-001_v2.cha:30"]}
    assert asked == {
        "講緊邊度?": ({"text": "Orlando", "start": 11},),
        "講緊幾時?": (),
        "講緊幾多?": ({"text": "廿五週年", "start": 29},),  # a number and its classifier
    }
