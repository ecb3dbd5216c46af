"""A pattern around texts: the gap is where it was put, and texts lose their ends where they are too long."""

import copy

import pytest
from fangyan.data.example import Example
from fangyan.data.tokenization import Tokenizer
from fangyan.errors import UserError
from fangyan.recipe import parse_recipe
from fangyan.tasks.cloze.pattern import Pattern, word_ids
from fangyan.tasks.cloze.task import Cloze
from hypothesis import given
from hypothesis import strategies as st
from model_families import BY_NAME, save
from tiny_tokenizers import sentencepiece
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

WORDS = st.lists(st.integers(10, 60).map(lambda i: f"w{i}"), max_size=30).map(" ".join)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save(BY_NAME["BERT"], folder)
    return Tokenizer(AutoTokenizer.from_pretrained(folder))


@given(WORDS, WORDS, st.integers(6, 40))
def test_gap_is_found_and_the_longer_text_is_cut(tokenizer, text, pair, max_length):
    pattern = Pattern("w90 {text} w91 {gap} w92 {pair} w93")
    ids, place = pattern.tokenize({"text": text, "pair": pair}, tokenizer, max_length)
    tokens = tokenizer.backend.convert_ids_to_tokens(ids)
    assert tokens[place] == "[MASK]"
    assert (tokens[0], tokens[place - 1], tokens[place + 1], tokens[-1]) == ("w90", "w91", "w92", "w93")
    found = tokens[1 : place - 1], tokens[place + 2 : -1]
    expected = text.split(), pair.split()
    assert all(whole[: len(own)] == own for own, whole in zip(found, expected, strict=True))
    total = sum(map(len, expected)) + 5
    assert len(ids) == min(total, max_length)
    if total > max_length and all(found):
        assert abs(len(found[0]) - len(found[1])) <= abs(len(expected[0]) - len(expected[1])) + 1


def test_gap_beside_mask_tokens_of_the_text(tokenizer):
    ids, place = Pattern("{text} {gap} {pair}").tokenize(
        {"text": "w10 [MASK]", "pair": "[MASK]"}, tokenizer, 50
    )
    assert (len(ids), place) == (4, 2)


def test_words_of_the_pattern_are_no_fields(tokenizer):
    ids, place = Pattern("text {text} gap {gap}").tokenize({"text": "w10 w11"}, tokenizer, 50)
    assert tokenizer.backend.convert_ids_to_tokens(ids)[place:] == ["[MASK]"]


def test_texts_that_fit_with_the_pattern_are_not_said_to_be_cut(tokenizer):
    text = "w10 w11 w12 w13 w14"
    examples = [Example({"text": text}, f"a.jsonl:{i}", "") for i in range(2)]
    task = Cloze(Pattern("w90 {text} w91 {gap}"), {"a": "w1", "b": "w2"})
    backend = copy.deepcopy(tokenizer.backend)
    backend.backend_tokenizer.post_processor = TemplateProcessing(
        single="[MASK] $A [MASK]", special_tokens=[("[MASK]", tokenizer.mask_id)]
    )
    with_special = Tokenizer(backend)
    ids, _ = task.pattern.tokenize({"text": text}, with_special, 50)
    assert list(task.cut_findings("train", examples, with_special, len(ids))) == []
    assert len(list(task.cut_findings("train", examples, with_special, len(ids) - 1))) == 1


def test_pattern_that_leaves_no_room(tokenizer):
    with pytest.raises(UserError, match="has 9 sub-words without a text, expected fewer than 8"):
        Pattern("w1 w2 w3 w4 {text} {gap} w5 w6 w7 w8").tokenize({"text": "w9"}, tokenizer, 8)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"a": "w70 w71", "b": "w72"}, "'w70 w71' of 'a' is 2 sub-words of the model, or unknown to it"),
        ({"a": "new", "b": "w72"}, "'new' of 'a' is 1 sub-words of the model, or unknown to it"),
        ({"a": "[MASK]", "b": "w72"}, r"'\[MASK\]' of 'a' is 1 sub-words of the model, or unknown to it"),
        ({"a": "w72", "b": "w72"}, "'w72' is the word of 'a' and of 'b', expected one for each"),
    ],
)
def test_words_that_are_none_of_the_model(tokenizer, words, message):
    with pytest.raises(UserError, match=message):
        word_ids(words, tokenizer.backend)


def test_words_that_have_the_mark_of_a_space_before_them():
    """Which is a sub-word of its own before Chinese characters, and stands in no gap."""
    backend = sentencepiece()
    assert len(backend.tokenize("去")) == 2
    assert backend.convert_ids_to_tokens(word_ids({"a": "去", "b": "我"}, backend)) == ["去", "我"]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            {"pattern": "{text} {gap} {gap}", "words": {"a": "x", "b": "y"}},
            "one {text} and one {gap}",
        ),
        ({"pattern": "{text}", "words": {"a": "x", "b": "y"}}, "one {text} and one {gap}"),
        (
            {"pattern": "{text} {gap} {more}", "words": {"a": "x", "b": "y"}},
            "one {text} and one {gap}",
        ),
        ({"pattern": "{text} {gap}", "words": {"a": "x"}}, "words has 1 classes, expected two or more"),
        ({"words": {"a": "x", "b": "y"}}, "task.pattern: missing"),
    ],
)
def test_recipes_with_a_mistake(task, message):
    with pytest.raises(UserError, match=message):
        parse_recipe(
            {"name": "x", "task": {"name": "cloze", **task}, "data": {"format": "jsonl", "train": "a"}}
        )


@pytest.mark.parametrize(
    ("line", "pattern", "message"),
    [
        ('{"text": "w1", "label": "c"}', "{text} {gap}", "label 'c' is not among the 2 classes: a, b"),
        ('{"text": "w1", "label": 0.5}', "{text} {gap}", "cloze is for one class per text, found regression"),
        ('{"text": "w1", "label": "a"}', "{text} {pair} {gap}", "has single texts, expected no {pair}"),
    ],
)
def test_data_that_does_not_fit(tmp_path, line, pattern, message):
    (tmp_path / "a.jsonl").write_text(f"{line}\n" * 20, encoding="utf-8")
    recipe = parse_recipe(
        {
            "name": "x",
            "task": {"name": "cloze", "pattern": pattern, "words": {"a": "x", "b": "y"}},
            "data": {"format": "jsonl", "train": str(tmp_path / "a.jsonl"), "dev": str(tmp_path / "a.jsonl")},
        }
    )
    with pytest.raises(UserError, match=message):
        recipe.task.build(recipe.data.load(0), recipe.data)
