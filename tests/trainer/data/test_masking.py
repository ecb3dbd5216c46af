"""What a masked language model has to guess: whole words, each once in evaluation, a share in training."""

from itertools import pairwise

import numpy as np
import pytest
from fangyan.data.masking import draws, hide_at_random, hide_in_turn, tokenize_units, unit_starts
from fangyan.data.tokenization import IGNORE_INDEX, Tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import KINDS, TEXTS

# The characters of its last word, with the marks on them.
THAI = ["ส", "วั", "ส", "ดี"]
TEXT = "ngóh deih 我哋去睇戲, amerikanische สวัสดี"


def tokenizer(kind):
    backend = KINDS[kind]()
    backend.add_special_tokens({"mask_token": "<mask>"})
    return Tokenizer(backend)


def units(kind, text, unit):
    found = tokenizer(kind)
    (sequence,) = tokenize_units(found, text, 512, unit)
    places = sequence.alignment.places
    return found, sequence, [sequence.input_ids[a:b] for a, b in pairwise(places)]


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("word", ["ngóh", "deih", *"我哋去睇戲", ",", "amerikanische", *THAI]),
        ("character", [*TEXT.partition(" ส")[0].replace(" ", ""), *THAI]),
    ],
)
def test_units_of_a_text_in_bytes(unit, expected):
    """A sub-word per byte: those of one word or character are together, and its accent is with its letter."""
    _, _, found = units("byte_alone", TEXT, unit)
    backend = tokenizer("byte_alone").backend
    assert [backend.decode(ids).strip() for ids in found] == expected


def test_units_that_share_a_sub_word_are_one():
    # "我哋" and "去睇" are one piece each; the second has a unit of the third too.
    assert unit_starts("我哋去睇戲", [(0, 2), (2, 4), (3, 5)], "word") == [0, 1]
    assert unit_starts("ab cd", [(0, 1), (1, 2), (2, 5)], "word") == [0, 2]
    assert unit_starts("ab cd", [(0, 1), (1, 2), (2, 5)], "subword") == [0, 1, 2]
    assert unit_starts("", [], "word") == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", ["word", "character", "subword"])
def test_every_sub_word_is_hidden_once_in_turn(kind, unit):
    found, sequence, parts = units(kind, TEXT, unit)
    copies = hide_in_turn(sequence, 0.15, found.mask_id)
    assert len(copies) == min(7, len(parts))
    hidden = np.zeros(len(sequence.input_ids), dtype=int)
    for copy in copies:
        labels = np.array(copy.labels)
        learned = labels != IGNORE_INDEX
        hidden += learned
        assert (labels[learned] == np.array(sequence.input_ids)[learned]).all()
        assert (np.array(copy.input_ids)[learned] == found.mask_id).all()
        assert (np.array(copy.input_ids)[~learned] == np.array(sequence.input_ids)[~learned]).all()
    places = sequence.alignment.places
    assert hidden[places[0] : places[-1]].tolist() == [1] * (places[-1] - places[0])
    assert hidden.sum() == places[-1] - places[0]  # and no special token


@settings(max_examples=50, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    unit=st.sampled_from(["word", "character", "subword"]),
    rate=st.sampled_from([0.15, 0.5, 0.9]),
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    step=st.integers(0, 99),
)
def test_whole_units_are_hidden_whoever_asks(kind, unit, rate, lengths, step):
    """Any part of a step's sequences alone is what it is among the others."""
    found = tokenizer(kind)
    sequences = [
        sequence
        for i, length in enumerate(lengths)
        for sequence in tokenize_units(found, TEXTS[i % 2][:length], 9, unit, i)
    ]
    drawn = draws(3, str(step), range(len(sequences)))
    together = hide_at_random(sequences, drawn, rate, found)
    assert len(together) == len(sequences)
    for i, (before, after) in enumerate(zip(sequences, together, strict=True)):
        assert hide_at_random([before], drawn[i : i + 1], rate, found) == [after]
        labels, ids = np.array(after.labels), np.array(before.input_ids)
        learned = labels != IGNORE_INDEX
        assert (labels[learned] == ids[learned]).all()
        assert (np.array(after.input_ids)[~learned] == ids[~learned]).all()
        places = before.alignment.places
        whole = [learned[a:b] for a, b in pairwise(places)]
        assert all(part.all() or not part.any() for part in whole)
        count = sum(bool(part.any()) for part in whole)
        assert abs(count - len(whole) * rate) < 1.0


def test_hidden_are_masked_changed_or_left_as_bert_has_it():
    found = tokenizer("byte_alone")
    sequences = tokenize_units(found, TEXT * 400, 500, "word")
    hidden = hide_at_random(sequences, draws(0, "0", range(len(sequences))), 0.15, found)
    pairs = [
        (before, after, label)
        for one, other in zip(sequences, hidden, strict=True)
        for before, after, label in zip(one.input_ids, other.input_ids, other.labels, strict=True)
        if label != IGNORE_INDEX
    ]
    total = sum(len(s.alignment.places) - 1 for s in sequences)
    assert len(pairs) > 3000
    assert abs(len(pairs) / sum(len(s.input_ids) for s in sequences) - 0.15) < 0.02
    masked = sum(after == found.mask_id for _, after, _ in pairs) / len(pairs)
    same = sum(after == before for before, after, _ in pairs) / len(pairs)
    assert masked == pytest.approx(0.8, abs=0.02)
    assert same == pytest.approx(0.1, abs=0.02)
    changed = {after for before, after, _ in pairs if after not in (found.mask_id, before)}
    assert not changed & set(found.backend.all_special_ids)
    assert len(changed) > 100
    assert total > 3000


def test_steps_hide_other_words():
    assert len({draws(seed, step, [5])[0] for seed in (0, 1) for step in ("0", "1", "2")}) == 6
    assert draws(0, "1", [5, 7])[1] == draws(0, "1", [7])[0]


def test_long_documents_continue_in_the_next_sequence():
    found = tokenizer("sentencepiece")
    sequences = tokenize_units(found, TEXT, 8, "word")
    assert all(len(s.input_ids) <= 8 for s in sequences)
    whole = found.backend(TEXT, add_special_tokens=False)["input_ids"]
    assert [i for s in sequences for i in s.input_ids[1:-1]] == whole
    assert tokenize_units(found, "", 8, "word") == []
