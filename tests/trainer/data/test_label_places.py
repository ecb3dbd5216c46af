"""Where labels lie: on a sub-word of their own token, with every kind of tokenizer."""

import time
import tracemalloc
import unicodedata

import pytest
import tiny_tokenizers
from fangyan.data.example import Example
from fangyan.data.formats.jsonl import Jsonl
from fangyan.data.tokenization import IGNORE_INDEX, Tokenizer, tokenize_words
from fangyan.tasks.token_classification.task import TokenClassification
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import meaning

ZERO_WIDTH = [" ", "\u200b", "\u200d", "\u0301", "\ufe0f"]
CASE_3 = ("我", "哋", "去", "amerikanische")


@pytest.fixture(scope="module")
def kinds():
    return {name: Tokenizer(kind()) for name, kind in tiny_tokenizers.KINDS.items()}


def labelled(tokenizer, sequence):
    """The sub-words of a sequence that have a label, as (label, id)."""
    return [
        (label, subword)
        for label, subword in zip(sequence.labels, sequence.input_ids, strict=True)
        if label != IGNORE_INDEX
    ]


def assert_own(tokenizer, token, subword):
    """Assert that a sub-word stands for a part of its token, or for all of what is unknown in it."""
    found = meaning(tokenizer.backend, subword)
    if found is None:
        assert any(meaning(tokenizer.backend, i) is None for i in ids_of(tokenizer, token))
        return
    if subword == tokenizer.pad_id:  # what has no sub-word and no unknown one
        return
    text = token.encode()
    plain = "".join(c for c in unicodedata.normalize("NFD", token.lower()) if unicodedata.category(c) != "Mn")
    assert found in text or found in plain.encode(), (token, found)
    assert found.strip(b" ") or not token.strip()


def ids_of(tokenizer, token):
    return [i for before in ("start", "space", "word") for i in tokenizer.subwords(token, before).ids]


@pytest.mark.parametrize("name", tiny_tokenizers.KINDS)
@pytest.mark.parametrize("label_place", ["first", "last"])
@pytest.mark.parametrize("spaced", [False, True])
def test_a_label_lies_on_a_subword_of_its_token(kinds, name, label_place, spaced):
    tokenizer = kinds[name]
    (sequence,) = tokenize_words(
        tokenizer, CASE_3, [0, 1, 2, 3], 512, spaces=[spaced] * 4, label_place=label_place
    )
    found = labelled(tokenizer, sequence)
    assert [label for label, _ in found] == [0, 1, 2, 3]
    for label, subword in found:
        assert meaning(tokenizer.backend, subword) in CASE_3[label].encode()
    if not spaced:  # nothing in it is but a space
        assert all(meaning(tokenizer.backend, i) for i in sequence.input_ids if i > tokenizer.pad_id)


@pytest.mark.parametrize("name", [name for name in tiny_tokenizers.KINDS if "byte" not in name])
def test_labels_of_different_characters_share_no_subword(kinds, name):
    (sequence,) = tokenize_words(kinds[name], CASE_3, [0, 1, 2, 3], 512, spaces=[False] * 4)
    ids = [subword for _, subword in labelled(kinds[name], sequence)]
    assert len(set(ids)) == 4


@pytest.mark.parametrize("name", tiny_tokenizers.KINDS)
def test_at_its_last_subword_a_token_has_been_read(kinds, name):
    """So that a causal tagger's first tag depends on the first character, whole."""
    tokenizer = kinds[name]
    read = []
    for first in "我哋":
        (sequence,) = tokenize_words(tokenizer, (first, "去"), [0, 1], 512, label_place="last")
        read.append(sequence.input_ids[: sequence.alignment.places[0] + 1])
    assert read[0] != read[1]


@pytest.mark.parametrize("name", ["sentencepiece", "byte_fallback", "byte_level", "byte_level_of_words"])
def test_spaces_are_those_of_the_text(kinds, name):
    """Tokens joined by their spaces are tokenized as the text is, but for merges over their bounds."""
    tokenizer = kinds[name]
    words, spaces = ("heui", ",", "去", "我", "tái"), (False, True, False, True, False)
    text = "".join(word + " " * space for word, space in zip(words, spaces, strict=True))
    (sequence,) = tokenize_words(tokenizer, words, None, 512, spaces=spaces)
    decoded = tokenizer.backend.decode(sequence.input_ids, skip_special_tokens=True)
    assert decoded.strip() == (text if "byte" in name else text.replace(",", ""))  # which is unknown to it


@pytest.mark.parametrize("name", tiny_tokenizers.KINDS)
def test_tokenizer_leaves_its_backend_as_it_is(name):
    backend = tiny_tokenizers.KINDS[name]()
    before = backend.backend_tokenizer.to_str()
    tokenize_words(Tokenizer(backend), CASE_3, None, 512, spaces=[False, True, False, True])
    assert backend.backend_tokenizer.to_str() == before


@pytest.mark.parametrize("name", tiny_tokenizers.KINDS)
@settings(max_examples=60)
@given(
    tokens=st.lists(
        st.one_of(
            st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=4),
            st.sampled_from([*ZERO_WIDTH, "𡃉", "ngo\u0301h", "á\u0302", "\u3000", "<unk>", "👩🏿‍🔬"]),
        ),
        min_size=1,
        max_size=6,
    ),
    spaces=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_every_token_has_one_label_place_of_its_own(kinds, name, tokens, spaces):
    tokenizer = kinds[name]
    classes = list(range(len(tokens)))
    for label_place in ("first", "last"):
        (sequence,) = tokenize_words(
            tokenizer, tokens, classes, 512, spaces=spaces[: len(tokens)], label_place=label_place
        )
        found = labelled(tokenizer, sequence)
        assert [label for label, _ in found] == classes
        assert [sequence.input_ids[place] for place in sequence.alignment.places] == [i for _, i in found]
        for label, subword in found:
            assert_own(tokenizer, tokens[label], subword)


@pytest.mark.parametrize("name", tiny_tokenizers.KINDS)
def test_zero_width_tokens_keep_a_tag_each(kinds, name, tmp_path):
    path = tmp_path / "t.jsonl"
    tokens = ["a", *ZERO_WIDTH, "b"]
    line = f'{{"tokens": {tokens}, "tags": {list("xnnnnny")}}}'.replace("'", '"')
    path.write_text(line, encoding="utf-8")
    (example,) = Jsonl(train=str(path)).read(path)
    assert list(example.fields["tokens"]) == tokens
    task = TokenClassification(["n", "x", "y"], "plain")
    (sequence,) = task.tokenize([example], kinds[name], 64)
    assert [label for label, _ in labelled(kinds[name], sequence)] == [1, 0, 0, 0, 0, 0, 2]


@pytest.mark.parametrize("label_place", ["first", "last"])
@pytest.mark.parametrize("name", tiny_tokenizers.KINDS)
def test_a_token_longer_than_the_model_has_a_place(kinds, name, label_place):
    """Its first sub-words are kept, and its neighbours have places of their own."""
    tokenizer = kinds[name]
    words = ("我", "amerikanische" * 385, "去")
    sequences = tokenize_words(tokenizer, words, [0, 1, 2], 64, label_place=label_place)
    assert all(len(sequence.input_ids) <= 64 for sequence in sequences)
    found = [pair for sequence in sequences for pair in labelled(tokenizer, sequence)]
    assert [label for label, _ in found] == [0, 1, 2]
    for label, subword in found:
        assert_own(tokenizer, words[label], subword)


def test_a_sentence_of_20000_tokens(kinds):
    """Every token is scored once, in time and memory that grow with its length."""
    tokenizer = kinds["byte_level"]

    def cost(length):
        words, classes = ("我", "哋", "heui", "tái") * (length // 4), list(range(length))
        seconds = []
        for _ in range(3):
            start = time.process_time()
            sequences = tokenize_words(tokenizer, words, classes, 128)
            seconds.append(time.process_time() - start)
        learned = [label for sequence in sequences for label, _ in labelled(tokenizer, sequence)]
        assert learned == classes
        tracemalloc.start()
        tokenize_words(tokenizer, words, classes, 128)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return min(seconds), peak

    (fast, small), (slow, large) = cost(5_000), cost(20_000)
    assert slow < 8 * fast  # 4 if linear, 16 if quadratic
    assert large < 5 * small
    assert large < 400 * 20_000


def test_tokens_of_characters_have_no_spaces_between_them(kinds):
    tokenizer = kinds["byte_level_of_words"]
    tokens = ("heui", "tái")
    spaced = Example({"tokens": tokens, "spaces": (True, True)}, "", "")
    glued = Example({"tokens": tokens, "spaces": (False, False)}, "", "")
    plain = Example({"tokens": tokens}, "", "")

    def ids(example, unit):
        task = TokenClassification(["n", "v"], "plain", unit)
        return [sequence.input_ids for sequence in task.tokenize([example], tokenizer, 64)]

    assert ids(plain, "words") == ids(spaced, "words") == ids(spaced, "characters")
    assert ids(plain, "characters") == ids(glued, "characters") == ids(glued, "words")
    assert ids(spaced, "words") != ids(glued, "words")
