"""Terms in sentences of the one side and of the other."""

from pathlib import Path

import pytest
from fangyan.analysis.terms import Terms, _with
from fangyan.data.example import Example
from fangyan.errors import UserError

PAIRS = [("he", "she"), ("old man", "old woman"), ("先生", "太太")]


def side_of(text, side):
    return _with(Example({"text": text, "label": "x"}, "", ""), PAIRS, side, "words").fields["text"]


@pytest.mark.parametrize(
    ("text", "left", "right"),
    [
        ("he said she went", "he said he went", "she said she went"),
        ("the old woman, he", "the old man, he", "the old woman, she"),
        ("the hero", "the hero", "the hero"),  # a part of a word
        ("陳太太話he去", "陳先生話he去", "陳太太話she去"),  # scripts without spaces show no bounds
    ],
)
def test_texts_of_both_sides(text, left, right):
    assert side_of(text, 0) == left
    assert side_of(text, 1) == right


def test_tokens_of_both_sides():
    def side(tokens, number, unit):
        example = Example({"tokens": tokens, "tags": ("x",) * len(tokens)}, "", "")
        return _with(example, PAIRS, number, unit).fields["tokens"]

    words = ("the", "old", "man", "he", "hero")
    assert side(words, 1, "words") == ("the", "old", "woman", "she", "hero")
    assert side(words, 0, "words") == words
    assert side(("太太",), 0, "words") == ("先生",)
    assert side(tuple("陳太太"), 0, "characters") == tuple("陳先生")


@pytest.mark.parametrize(
    ("content", "unit", "message"),
    [
        ("men\twomen\n", "words", "one line, expected the names of the two sides"),
        (
            "men\twomen\nold man\tlady\n",
            "words",
            "terms.tsv:2: 'old man' is 2 words and 'lady' is 1, expected as",
        ),
        ("a\tb\n男\t女人\n", "characters", "terms.tsv:2: '男' is 1 characters and '女人' is 2"),
        ("a\tb\nhim\ther\nhis\ther\n", None, "terms.tsv:3: 'her' is also in line 2, expected it once"),
        ("a\tb\nhe\the\n", None, "terms.tsv:2: both sides are 'he', expected two terms"),
    ],
)
def test_terms_with_a_mistake(tmp_path, content, unit, message):
    path = tmp_path / "terms.tsv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as error:
        Terms.read(path, unit)
    assert message in str(error.value)


def test_terms_of_the_examples():
    path = Path(__file__).parents[3] / "examples" / "cantonese-terms.tsv"
    assert Terms.read(path, "characters").pairs[1] == ("老公", "老婆")


def test_sides_may_be_called_like_a_term(tmp_path):
    path = tmp_path / "terms.tsv"
    path.write_text("男\t女\n男\t女\nold man\tlady\n", encoding="utf-8")
    assert Terms.read(path, None) == Terms(path, ("男", "女"), [("男", "女"), ("old man", "lady")])
