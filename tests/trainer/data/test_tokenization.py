"""No labelled word is dropped: not by sequences, not by normalization, not by the tokenizer."""

from itertools import pairwise

import pytest
import tiny_exports
import tokenizers
from fangyan.data import tokenization
from fangyan.data.tokenization import IGNORE_INDEX, Tokenizer, tokenize_text, tokenize_words
from fangyan.errors import UserError
from fangyan.models.packaged.cantonese_qwen3 import read_cantonese_qwen3
from fangyan.models.packaged.electra import read_electra
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def electra():
    return read_electra(pretrained=False).tokenizer


@pytest.fixture(scope="module")
def document_tokenizer():
    return read_cantonese_qwen3(pretrained=False).tokenizer


def byte_level_tokenizer():
    """A byte-level BPE as causal models have, with a beginning-of-sequence token and no unknown."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "<pad>"], show_progress=False)
    tokenizer.train_from_iterator(["ngóh deih heui tái hei"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>")


def word_level_tokenizer(words, special="[CLS]", unknown="[UNK]", normalizer=None):
    """A tokenizer of whole words, with a special token before and after every sentence."""
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["[PAD]", unknown, special, *words]))}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{special} $A {special}", special_tokens=[(special, vocabulary[special])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token=unknown, bos_token=special, eos_token=special
    )


def test_tokenize_words_surrounds_a_sentence_by_special_tokens(electra):
    (sequence,) = tokenize_words(Tokenizer(electra), tuple("我哋"), [3, 4], 512)
    assert electra.convert_ids_to_tokens(sequence.input_ids) == ["[CLS]", "我", "哋", "[SEP]"]
    assert sequence.labels == [IGNORE_INDEX, 3, 4, IGNORE_INDEX]
    (sequence,) = tokenize_words(Tokenizer(byte_level_tokenizer()), ("heui",), [1], 512)
    assert sequence.input_ids[0] == 0
    assert sequence.alignment.places == [1]


@pytest.mark.parametrize("known", [["b"], ["a", "b"]], ids=["a is unknown", "a is a word"])
@pytest.mark.parametrize("unknown", ["[UNK]", "<end>"])
def test_tokenizer_finds_special_tokens_by_the_mask(known, unknown):
    """Not by their ids: GPT-2's one special token begins and ends a text, and is the unknown word."""
    tokenizer = Tokenizer(word_level_tokenizer(known, special="<end>", unknown=unknown))
    special, unk, b = tokenizer.backend.convert_tokens_to_ids(["<end>", unknown, "b"])
    assert (tokenizer.prefix, tokenizer.suffix) == ([special], [special])
    (sequence,) = tokenize_words(tokenizer, ("b", "zz", "b"), [5, 6, 7], 512)
    assert sequence.input_ids == [special, b, unk, b, special]
    assert sequence.labels == [IGNORE_INDEX, 5, 6, 7, IGNORE_INDEX]


def test_tokenizer_without_any_subword_is_refused():
    nothing = tokenizers.normalizers.Replace(tokenizers.Regex("."), "")
    backend = word_level_tokenizer(["b"], normalizer=nothing)
    with pytest.raises(UserError, match="makes nothing but special tokens of a letter"):
        Tokenizer(backend)


def test_tokenizer_without_padding_token_is_refused():
    backend = byte_level_tokenizer()
    backend.pad_token = None
    with pytest.raises(UserError, match="model.path: its tokenizer has no padding token"):
        Tokenizer(backend)


@pytest.mark.parametrize("word", ["\u0301", "\u200b", "\u200d", "🏿", "𡃉", "é", "ngo\u0301h", "OK"])
def test_tokenize_words_keeps_a_subword_of_what_normalizes_to_nothing(electra, word):
    """huggingface/tokenizers 1663: a sentence's word_ids skip such words, and labels shift."""
    for backend in (electra, byte_level_tokenizer()):
        (sequence,) = tokenize_words(Tokenizer(backend), ("a", word, "b"), [5, 6, 7], 512)
        places = sequence.alignment.places
        assert len(places) == 3
        assert [sequence.labels[i] for i in places] == [5, 6, 7]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=120),
    max_length=st.integers(8, 40),
)
def test_tokenize_words_scores_every_word_once(electra, sizes, max_length):
    words = tuple("字" * size for size in sizes)
    classes = list(range(len(sizes)))
    sequences = tokenize_words(Tokenizer(electra), words, classes, max_length, example=3)
    assert all(len(sequence.input_ids) <= max_length for sequence in sequences)
    scored = [word for sequence in sequences for word in range(*sequence.alignment.span)]
    assert scored == classes
    learned = [label for sequence in sequences for label in sequence.labels if label != IGNORE_INDEX]
    assert learned == classes
    for sequence in sequences:
        words_in_it = sequence.alignment
        assert words_in_it.start <= words_in_it.span[0] <= words_in_it.span[1]
        assert words_in_it.span[1] <= words_in_it.start + len(words_in_it.places)
        assert words_in_it.num_words == len(sizes)
        assert sequence.example == 3


@pytest.mark.parametrize("max_length", [8, 9, 64])
def test_tokenize_words_puts_a_prefix_before_each_sequence(electra, max_length):
    tokenizer, words = Tokenizer(electra), tuple("我哋去旺角食飯睇戲")
    prefix = tokenizer.subwords("yue").ids[: (max_length - 2) // 4]
    sequences = tokenize_words(tokenizer, words, list(range(len(words))), max_length, prefix="yue")
    learned = []
    for sequence in sequences:
        assert len(sequence.input_ids) <= max_length
        assert sequence.input_ids[: 1 + len(prefix)] == [*tokenizer.prefix, *prefix]
        assert set(sequence.labels[: 1 + len(prefix)]) == {IGNORE_INDEX}
        start, end = sequence.alignment.span
        for word in range(start, end):
            place = sequence.alignment.places[word - sequence.alignment.start]
            assert electra.convert_ids_to_tokens(sequence.input_ids[place]) == words[word]
            assert sequence.labels[place] == word
        learned += range(start, end)
    assert learned == list(range(len(words)))
    (spaced,) = tokenize_words(Tokenizer(byte_level_tokenizer()), ("heui",), [1], 64, prefix="x")
    assert (
        spaced.input_ids[-1]
        == tokenize_words(Tokenizer(byte_level_tokenizer()), ("x", "heui"), [0, 1], 64)[0].input_ids[-1]
    )  # as a word after a space


def test_tokenize_words_scores_words_with_context_on_both_sides(electra):
    sequences = tokenize_words(Tokenizer(electra), tuple("字" * 200), None, 66)
    assert len(sequences) > 3
    for left, right in pairwise(sequence.alignment for sequence in sequences):
        seam = left.span[1]
        assert seam - right.start >= 7
        assert left.start + len(left.places) - seam >= 7


def test_tokenize_words_without_classes_learns_nothing(electra):
    (sequence,) = tokenize_words(Tokenizer(electra), tuple("我哋"), None, 512)
    assert set(sequence.labels) == {IGNORE_INDEX}


@given(length=st.integers(0, 70), max_length=st.integers(1, 24))
@settings(max_examples=60, deadline=None)
def test_tokenize_text_predicts_every_subword_once(document_tokenizer, length, max_length):
    """A document is cut to ``max_length``, and each of its sub-words but the first is a label once."""
    backend, text = document_tokenizer, "字" * length
    ids = [backend.bos_token_id, *backend(text, add_special_tokens=False)["input_ids"], backend.eos_token_id]
    assert len(ids) == length + 2
    sequences = tokenize_text(Tokenizer(backend), text, max_length, example=2)
    assert all(len(sequence.input_ids) <= max_length for sequence in sequences)
    assert [i for sequence in sequences for i in sequence.input_ids] in (ids, ids[:-1])
    learned = [label for sequence in sequences for label in sequence.labels if label != IGNORE_INDEX]
    assert learned == ids[1:]
    assert {sequence.example for sequence in sequences} == {2}
    for left, right in pairwise(sequences):
        assert left.labels[-1] == right.input_ids[0]


def test_subwords_are_remembered_of_some_words_alone(monkeypatch, electra):
    monkeypatch.setattr(tokenization, "_CACHED_WORDS", 3)
    tokenizer = Tokenizer(electra)
    words = [*"我哋去飲茶", "我"]
    first = [tokenizer.subwords(word) for word in words]
    assert [tokenizer.subwords(word) for word in words] == first
    assert 0 < max(map(len, tokenizer._subwords.values())) <= 3


def test_tokenize_text_of_which_nothing_is_left():
    """A zero-width space alone, by a tokenizer that drops it and puts nothing around a text."""
    assert tokenize_text(Tokenizer(tiny_exports.tokenizer()), "\u200b", 8) == []
