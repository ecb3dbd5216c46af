"""Hiding words or characters of a text for a masked language model (Devlin et al. 2019, arXiv 1810.04805).

What is hidden in a step follows from the run's seed, the step and the sequence alone: every rank knows it of
every sequence, and a resumed run hides the same.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fangyan.data.tokenization import IGNORE_INDEX, TokenizedSequence, Tokenizer, WordAlignment

Unit = Literal["word", "character", "subword"]

# Of what is hidden, the share that becomes the mask token, and that or a random sub-word; the rest stays.
_MASKED, _CHANGED = 0.8, 0.9
# Scripts without spaces between words: each character is a word there. Thai and Lao; Tibetan; Burmese; Khmer;
# kana; Han.
UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_ALONE = re.compile(f"[{UNSPACED}]")


def unit_starts(text: str, offsets: Sequence[tuple[int, int]], unit: Unit) -> list[int]:
    """Return the first sub-word of each of a text's units.

    Sub-words that share a unit are one unit, and so are the units that share a sub-word.

    Args:
        text: as it was tokenized.
        offsets: first and last character of each sub-word.
        unit: what is hidden as a whole.
    """
    if unit == "subword":
        return list(range(len(offsets)))
    owner = _units_of_characters(text, unit)
    starts: list[int] = []
    reached, space = -1, None
    for i, (start, end) in enumerate(offsets):
        units = [number for number in owner[start:end] if number >= 0]
        if not units:  # a space, which goes with what follows it
            space = i if space is None else space
            continue
        if units[0] > reached:
            starts.append(i if space is None else space)
        reached, space = max(reached, units[-1]), None
    return starts


def words_of(text: str) -> list[str]:
    """Return a text's words: between white space, or single characters of scripts without spaces."""
    words: list[str] = []
    before = -1
    for character, number in zip(text, _units_of_characters(text, "word"), strict=True):
        if number > before:
            words.append("")
            before = number
        if number >= 0:
            words[-1] += character
    return words


def _units_of_characters(text: str, unit: Unit) -> list[int]:
    """Return the number of each character's unit; -1 for white space."""
    found: list[int] = []
    number, in_word = -1, False
    for character in text:
        if character.isspace():
            found.append(-1)
            in_word = False
            continue
        is_mark = found and found[-1] >= 0 and unicodedata.category(character).startswith("M")
        stands_alone = unit == "character" or _ALONE.match(character) is not None
        if not is_mark:
            number += stands_alone or not in_word
            in_word = not stands_alone
        found.append(number)
    return found


def tokenize_units(
    tokenizer: Tokenizer, text: str, max_length: int, unit: Unit, example: int = 0
) -> list[TokenizedSequence]:
    """Tokenize a document for a masked language model; nothing is hidden yet.

    A document longer than ``max_length`` continues in the next sequence. The alignment's places are the first
    sub-word of each unit, and behind them the end of the last.
    """
    encoded = tokenizer.backend(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    starts = unit_starts(text, encoded["offset_mapping"], unit)
    prefix, suffix = tokenizer.prefix, tokenizer.suffix
    room = max_length - len(prefix) - len(suffix)
    sequences = []
    for first in range(0, len(ids), room):
        piece = ids[first : first + room]
        inside = [start - first for start in starts if first < start < first + len(piece)]
        places = [len(prefix) + place for place in (0, *inside, len(piece))]
        input_ids = [*prefix, *piece, *suffix]
        alignment = WordAlignment(places, 0, (0, len(places) - 1), len(places) - 1)
        sequences.append(TokenizedSequence(input_ids, [IGNORE_INDEX] * len(input_ids), example, alignment))
    return sequences


def hide_in_turn(sequence: TokenizedSequence, rate: float, mask_id: int) -> list[TokenizedSequence]:
    """Return copies of a sequence in which each unit is hidden once: every n-th in each of n copies.

    Args:
        sequence: of :func:`tokenize_units`.
        rate: share of the units that a copy hides, at most; of one with few units, one at a time.
        mask_id: of the mask token.
    """
    assert sequence.alignment is not None
    places = sequence.alignment.places
    copies = min(len(places) - 1, max(1, round(1.0 / rate)))
    found = []
    for turn in range(copies):
        ids, labels = list(sequence.input_ids), list(sequence.labels)
        for unit in range(turn, len(places) - 1, copies):
            for place in range(places[unit], places[unit + 1]):
                labels[place], ids[place] = ids[place], mask_id
        found.append(TokenizedSequence(ids, labels, sequence.example))
    return found


def draws(seed: int, step: str, indices: Sequence[int]) -> NDArray[np.uint64]:
    """Return a random number for each sequence of a step, whichever rank asks, (S,), uint64."""
    digest = hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=8).digest()
    return _mix(np.asarray(indices, dtype=np.uint64), int.from_bytes(digest, "little"))


def hide_at_random(
    sequences: Sequence[TokenizedSequence], drawn: NDArray[np.uint64], rate: float, tokenizer: Tokenizer
) -> list[TokenizedSequence]:
    """Return sequences with some of their units hidden, whose sub-words are then their labels.

    Args:
        sequences: of :func:`tokenize_units`.
        drawn: a random number for each, of :func:`draws`.
        rate: share of a sequence's units that is hidden, rounded up or down at random.
        tokenizer: of the model.
    """
    if not sequences:
        return []
    ids = np.concatenate([np.asarray(s.input_ids, dtype=np.int64) for s in sequences])
    lengths = np.array([len(s.input_ids) for s in sequences])
    ends = np.cumsum(lengths)
    starts = ends - lengths
    positions = _hidden_positions(sequences, drawn, rate, starts)
    labels = np.full_like(ids, IGNORE_INDEX)
    labels[positions] = ids[positions]
    owner = ends.searchsorted(positions, side="right")
    # By the place within its sequence: the others of a micro-batch change nothing.
    place = (positions - starts[owner]).astype(np.uint64)
    kinds = _uniform(_mix(place, 1) ^ drawn[owner])
    ordinary = tokenizer.ordinary_ids
    picked = _mix(_mix(place, 2) ^ drawn[owner], 3) % np.uint64(len(ordinary))
    random = ordinary[picked.astype(np.int64)]
    assert tokenizer.mask_id is not None
    ids[positions] = np.where(
        kinds < _MASKED, tokenizer.mask_id, np.where(kinds < _CHANGED, random, ids[positions])
    )
    new_ids, new_labels = ids.tolist(), labels.tolist()
    return [
        replace(s, input_ids=new_ids[start:end], labels=new_labels[start:end])
        for s, start, end in zip(sequences, starts.tolist(), ends.tolist(), strict=True)
    ]


def _hidden_positions(
    sequences: Sequence[TokenizedSequence],
    drawn: NDArray[np.uint64],
    rate: float,
    starts: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return where the hidden sub-words are, of all sequences one after the other."""
    places = [s.alignment.places for s in sequences if s.alignment is not None]
    counts = np.array([len(own) - 1 for own in places])
    firsts = np.concatenate([own[:-1] for own in places]) + np.repeat(starts, counts)
    widths = np.concatenate([np.diff(own) for own in places])
    owner = np.repeat(np.arange(len(places)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = np.lexsort((_mix(number.astype(np.uint64), 4) ^ drawn[owner], owner))
    # The order within a sequence of what is sorted: the first few of each are hidden.
    wanted = np.floor(counts * rate + _uniform(_mix(drawn, 5)))
    chosen = np.sort(order[number < wanted[owner]])
    steps = np.arange(widths[chosen].sum()) - np.repeat(
        np.cumsum(widths[chosen]) - widths[chosen], widths[chosen]
    )
    return np.asarray(np.repeat(firsts[chosen], widths[chosen]) + steps, dtype=np.int64)


def _mix(values: NDArray[np.uint64], salt: int) -> NDArray[np.uint64]:
    """Return numbers that look random, by SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = values + np.uint64((salt * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & (2**64 - 1))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)), dtype=np.uint64)


def _uniform(values: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return numbers in [0, 1)."""
    return np.asarray(_mix(values, 6) >> np.uint64(11), dtype=np.float64) / 2.0**53
