"""Characters of sub-words, whatever a tokenizer says of them."""

import random
import unicodedata

import pytest
import tokenizers
from fangyan.tasks.extractive_qa.alignment import (
    NOWHERE,
    Readings,
    align,
    find_span,
    reading,
    whole_characters,
)
from tiny_tokenizers import CHARACTERS, KINDS, sentencepiece, wordpiece
from tokenizers import normalizers

# Marks that compose and that do not, Greek's koronis, compatibility forms, Hangul, Thai, emoji, kana.
LETTERS = [
    *"aeimnrkg",
    "á",
    "a\u0301",
    "o\u030d",
    "o\u0358",
    "ø",
    "ß",
    "İ",
    "ﬁ",
    "①",
    "…",
    "한",
    "ไม้",
    "👍🏽",
]
LETTERS += ["᾽", "ア\u3099", "ガ", "ｶﾞ", "x\u0301\u0323", "\u200d", "۱", *CHARACTERS]


def texts(count, seed=0):
    draw = random.Random(seed)
    for _ in range(count):
        words = ["".join(draw.choices(LETTERS, k=draw.randint(1, 5))) for _ in range(draw.randint(2, 8))]
        text = draw.choice([" ", "  ", "\n", ""]).join(words)
        yield draw.choice(["NFC", "NFD", None]), text


def aligned(backend, text):
    encoded = backend(text, add_special_tokens=False, return_offsets_mapping=True)
    read = [Readings(backend)(i) for i in encoded["input_ids"]]
    return align(text, encoded["offset_mapping"], read)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalizer", [None, "NFC", "NFKC", "NFD"])
def test_spans_are_the_characters_that_were_asked_for(kind, normalizer):
    """Each is found, and reads as the answer does, up to the sub-words at its ends."""
    backend = KINDS[kind]()
    if normalizer and backend.backend_tokenizer.normalizer is None:
        backend.backend_tokenizer.normalizer = getattr(normalizers, normalizer)()
    draw = random.Random(1)
    for form, raw in texts(60):
        text = unicodedata.normalize(form, raw) if form else raw
        spans, read = aligned(backend, text)
        assert len(spans) == len(read)
        for _ in range(4):
            start, end = sorted(draw.sample(range(len(text) + 1), 2))
            if not reading(text[start:end]):
                continue
            found = find_span(text, spans, read, start, end)
            assert found is not None
            first, last = found
            covered = text[spans[first][0] : max(span[1] for span in spans[first : last + 1])]
            assert reading(text[start:end]) in reading(covered)


def shifted(offsets, length, by=2):
    return [(min(start + by, length - 1), min(end + by, length)) for start, end in offsets]


@pytest.mark.parametrize("text", ["我哋去 睇戲", "ngóh tái", "ngo\u0301h ta\u0301i"])
def test_wrong_offsets_are_replaced(text):
    """As if the normalizer had moved them: what a sub-word reads as says where it is."""
    backend = sentencepiece()
    encoded = backend(text, add_special_tokens=False, return_offsets_mapping=True)
    read = [Readings(backend)(i) for i in encoded["input_ids"]]
    right, wrong = encoded["offset_mapping"], shifted(encoded["offset_mapping"], len(text))
    expected, _ = align(text, right, read)
    found, _ = align(text, wrong, read)
    for i, part in enumerate(read):
        if part:
            assert reading(text[slice(*found[i])]) == part
            assert found[i] == expected[i]


def test_what_no_sub_word_stands_for_is_not_found():
    text = "我哋去睇戲"
    spans, read = align(text, [(i, i + 1) for i in range(5)], [*"我哋xy戲"])
    assert find_span(text, spans, read, 0, 2) == (0, 1)
    assert find_span(text, spans, read, 2, 3) is None
    assert find_span(text, spans, read, 1, 4) is None
    assert find_span(text, [NOWHERE] * 5, read, 0, 2) is None
    assert find_span(text, spans[:3] + [NOWHERE] * 2, [*"我哋", None, "", ""], 2, 5) is None


def test_space_alone_is_nowhere():
    """XLM-R's mark before a word stands for the word's first character, by the tokenizer's offsets."""
    text = "我 去"
    spans, read = aligned(sentencepiece(), text)
    assert read == ["", "我", "", "去"]
    assert spans == [NOWHERE, (0, 1), NOWHERE, (2, 3)]


def test_continued_sub_word_reads_without_its_prefix():
    backend = wordpiece()
    _, read = aligned(backend, "ngoh america deih")
    assert read == ["ng", "oh", "america", None]


def test_composed_character_keeps_its_marks():
    """NFC counts what it composes as the letter alone (tokenizers 1201)."""
    backend = sentencepiece()
    backend.backend_tokenizer.normalizer = normalizers.NFC()
    text = "nge\u0301h tai\u0301"
    spans, read = aligned(backend, text)
    first, last = find_span(text, spans, read, 0, 5)
    start, end = whole_characters(text, spans[first][0], spans[last][1])
    assert text[start:end] == "nge\u0301h"
    assert whole_characters(text, 0, 3) == (0, 4)
    assert whole_characters(text, 3, 5) == (2, 5)
    assert whole_characters(text, *NOWHERE) == NOWHERE


def test_replaced_character_between_others_is_trusted():
    """ALBERT writes other quotation marks."""
    backend = sentencepiece()
    backend.backend_tokenizer.normalizer = normalizers.Replace("``", "k")
    text = "ng``ei``hei"
    spans, read = aligned(backend, text)
    first, last = find_span(text, spans, read, 2, 8)
    assert (spans[first], spans[last]) == ((2, 4), (6, 8))


def test_normalizer_that_drops_and_replaces():
    backend = sentencepiece()
    backend.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(tokenizers.Regex("哋"), ""), normalizers.Replace("睇", "我我")]
    )
    text = "我哋去睇戲"
    spans, read = aligned(backend, text)
    assert find_span(text, spans, read, 4, 5) is not None  # behind what was replaced
    assert find_span(text, spans, read, 1, 2) is None
    assert find_span(text, spans, read, 3, 4) is None
