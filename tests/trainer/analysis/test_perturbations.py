"""What perturbations change, and what they never do."""

import unicodedata
from pathlib import Path
from random import Random

import pytest
from fangyan.analysis.edits import clusters, edited
from fangyan.analysis.perturbations import (
    double,
    drop,
    lower,
    mapped,
    neighbour,
    perturbations,
    read_mapping,
    strip_diacritics,
    strip_tones,
    swap,
    upper,
)
from fangyan.data.example import Example
from fangyan.errors import UserError
from hypothesis import given
from hypothesis import strategies as st

WORDS = st.lists(st.text("aéxß我ก็ि́2! ", min_size=1).filter(str.strip), min_size=1, max_size=8)


@given(WORDS, st.integers(0, 5), st.sampled_from(["words", "characters"]))
def test_perturbations_keep_the_number_of_tokens_and_all_else(words, seed, unit):
    tokens = tuple(clusters(words[0])) if unit == "characters" else tuple(words)
    example = Example({"tokens": tokens, "tags": ("x",) * len(tokens), "spaces": (True,)}, "f:1", "g")
    for perturbation in perturbations(0.5):
        found = perturbation(example, str(seed), unit)
        assert found == perturbation(example, str(seed), unit)
        assert len(found.fields["tokens"]) == len(tokens)
        assert all(found.fields["tokens"])
        assert {**found.fields, "tokens": tokens} == example.fields
        assert (found.source, found.group) == ("f:1", "g")
        if unit == "characters":
            assert all(len(clusters(token)) == 1 for token in found.fields["tokens"])


@given(st.text("abc 我你\n\t.", min_size=1), st.integers(0, 5))
def test_texts_keep_their_white_space_and_label(text, seed):
    example = Example({"text": text, "label": "y"}, "f:1", text)
    for perturbation in perturbations(1.0):
        found = perturbation(example, str(seed), "words").fields
        assert found["label"] == "y"
        assert [c for c in found["text"] if c.isspace()] == [c for c in text if c.isspace()]


@pytest.mark.parametrize(
    ("change", "word", "expected"),
    [
        (swap, "ab", {"ba"}),
        (swap, "我哋", {"哋我"}),
        (swap, "a.b", {"a.b"}),
        (swap, "aa", {"aa"}),
        (drop, "ab", {"a", "b"}),
        (drop, "a", {"a"}),
        (drop, "12", {"12"}),
        (double, "ab", {"aab", "abb"}),
        (double, "我", {"我"}),
        (neighbour, "P", {"O", "L"}),
        (neighbour, "我", {"我"}),
        (lower, "Äb", {"äb"}),
        (upper, "ß", {"SS"}),
    ],
)
def test_changes_of_a_word(change, word, expected):
    assert {change(word, Random(seed)) for seed in range(40)} == expected


def test_marks_stay_with_their_letters():
    """The acute of a decomposed é moves with it."""
    word = unicodedata.normalize("NFD", "éa")
    assert swap(word, Random(0)) == unicodedata.normalize("NFD", "aé")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("čáhppes", "cahppes"),
        ("nǐ", "ni"),
        ("lí-hó", "li-ho"),
        ("Việt", "Viet"),
        ("שָׁלוֹם", "שלום"),
        ("مَرْحَبًا", "مرحبا"),
        ("น้ำ", "นำ"),
        ("नमस्ते", "नमस्ते"),  # vowel signs and the virama are letters
        ("が", "が"),
        ("한국", "한국"),
        ("嘢", "嘢"),
        ("\u0301", "\u0301"),  # nothing would be left
    ],
)
def test_strip_diacritics(word, expected):
    assert strip_diacritics(word, Random(0)) == unicodedata.normalize("NFC", expected)


def test_strip_diacritics_leaves_other_words_as_they_are():
    """A letter that is not composed stays so: only marks go."""
    word = unicodedata.normalize("NFD", "한")
    assert strip_diacritics(word, Random(0)) == word


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("hou2", "hou"),
        ("(nei5hou2)?", "(neihou)?"),
        ("m4", "m"),
        ("ng5", "ng"),
        ("mp3", "mp3"),
        ("covid19", "covid19"),
        ("2024", "2024"),
        ("hou", "hou"),
    ],
)
def test_strip_tones(word, expected):
    assert strip_tones(word, Random(0)) == expected


def test_mapping_takes_the_longest_first(tmp_path):
    path = tmp_path / "map.tsv"
    path.write_text("# simplified\n後\t后\n皇后\t皇后\n乾\t干\n乾隆\t乾隆\n\n", encoding="utf-8")
    change = mapped(read_mapping(path))
    assert [change(word, Random(0)) for word in ("皇后後", "乾隆乾", "我")] == ["皇后后", "乾隆干", "我"]
    *_, last = perturbations(0.1, [path])
    assert last.name == "mapping map.tsv"
    with pytest.raises(UserError, match="a file of this name is there twice"):
        perturbations(0.1, [path, path])


def test_mapping_of_several_words_or_characters(tmp_path):
    """What is written across white space, or across tokens that are characters, is mapped as well."""
    path = tmp_path / "map.tsv"
    path.write_text("going to\tgonna\n乾\t干\n乾隆\t乾隆\n而家\t宜家\n咁樣\t咁\n", encoding="utf-8")
    *_, mapping = perturbations(0.1, [path])
    text = Example({"text": "going to  乾\tgoing", "label": "x"}, "", "")
    assert mapping(text, "", "words").fields["text"] == "gonna  干\tgoing"
    tokens = Example({"tokens": tuple("乾隆而家乾咁樣"), "tags": ("x",) * 7}, "", "")
    assert mapping(tokens, "", "characters").fields["tokens"] == tuple("乾隆宜家干咁樣")
    words = Example({"tokens": ("乾隆", "乾"), "tags": ("x",) * 2}, "", "")
    assert mapping(words, "", "words").fields["tokens"] == ("乾隆", "干")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\n", "map.tsv:1: 1 columns, expected 2 with a tab between, and none empty; found 'a'"),
        ("a\tb\n\nc\t \n", "map.tsv:3: 2 columns, expected 2 with a tab between, and none empty"),
        ("a\tb\na\tc\n", "map.tsv:2: 'a' is also in line 1, expected it once"),
        ("\n", "map.tsv: no pair in it"),
    ],
)
def test_mapping_with_a_mistake(tmp_path, content, message):
    path = tmp_path / "map.tsv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_mapping(path)
    assert message in str(error.value)


def test_mapping_of_the_examples():
    change = mapped(read_mapping(Path(__file__).parents[3] / "examples" / "cantonese-spellings.tsv"))
    assert change("佢哋唔喺嗰度", Random(0)) == "佢地吾系個度"


def test_a_character_does_not_become_several():
    """Tags are of characters: one that is written as two would have no tag for the other."""
    example = Example({"tokens": ("咁", "啲"), "tags": ("B-d", "B-q")}, "", "")
    change = {"咁": "咁樣", "啲": "D"}

    def changed(tokens):
        return [change[token] for token in tokens]

    assert edited(example, changed, "characters").fields["tokens"] == ("咁", "D")
    assert edited(example, changed, "words").fields["tokens"] == ("咁樣", "D")


def test_the_name_of_a_data_set_and_a_context_stay():
    def capitals(words):
        return [word.upper() for word in words]

    told = Example({"text": "gsw: so gsw: guet", "dataset": "gsw"}, "", "")
    assert edited(told, capitals).fields["text"] == "gsw: SO GSW: GUET"
    asked = Example({"question": "who", "context": "he", "answers": ({"text": "he", "start": 0},)}, "", "")
    assert edited(asked, capitals).fields == {**asked.fields, "question": "WHO"}
    pair = Example({"text": "a", "pair": "b", "label": "x"}, "", "")
    assert edited(pair, capitals).fields == {"text": "A", "pair": "B", "label": "x"}
