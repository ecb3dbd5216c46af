"""From text to the model's sub-words: every labelled token keeps a sub-word of its own.

Each token is tokenized by itself and remembered. Aligning a whole sentence by the tokenizer's
``word_ids`` fails silently where normalization moves characters (huggingface/tokenizers 1663):
diacritics do it, and dialect orthographies are full of them.

A token has a space before it where its text has one, and a label never lies on a sub-word that is nothing but
the mark of that space: SentencePiece and byte-level tokenizers make a ``▁`` or ``Ġ`` of its own before most
Chinese characters, the same before all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fangyan.data.prefix_space import plain_encoder
from fangyan.errors import UserError

IGNORE_INDEX = -100

# What is before a word: nothing, since it begins the text; white space; or another word.
Before = Literal["start", "space", "word"]
# Which of a word's sub-words has its label; with ``mean`` the last, and the mean of all is classified.
LabelPlace = Literal["first", "last", "mean"]

# Sub-words that may be nothing but the mark of a space: SentencePiece's, byte-level BPE's, a space.
_SPACE_MARKS = "▁Ġ "


class Subwords(NamedTuple):
    """The sub-words of a word.

    Attributes:
        ids: never empty.
        first: index of the first that is more than a space.
        last: of the last.
    """

    ids: list[int]
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class WordAlignment:
    """Where the words of an example are in one of its sequences.

    Attributes:
        places: index into ``input_ids`` of the sub-word that has the label of each word in the sequence.
        start: the example's word that the sequence begins with.
        span: slice bounds, in words of the example, that this sequence scores. The spans of an example's
            sequences tile it: each word is trained on, and predicted, once, in the sequence where it has
            most context (the max-context span of BERT's SQuAD).
        num_words: words of the whole example.
        widths: for each word, sub-words up to its place whose mean is classified; empty where it is the one
            at its place alone.
    """

    places: list[int]
    start: int
    span: tuple[int, int]
    num_words: int
    widths: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TokenizedSequence:
    """An example, or a piece of one, that fits the model.

    Attributes:
        input_ids: sub-words, with the model's special tokens around them.
        labels: class of every sub-word, ``IGNORE_INDEX`` where nothing is learned.
        example: index of the example that it is of.
        alignment: its words, where a task works by words; a text that is classified as a whole is one word.
        segments: of a pair of texts, which of the two each sub-word is of (``token_type_ids``); empty where
            the model is not told.
        targets: numbers to learn in place of a class, one for each of the head's outputs: values, or the
            places of sub-words; empty otherwise.
        characters: where in the example's text each sub-word begins and ends, two numbers for each, -1 for
            one that stands for nothing of it; empty where a task does not ask.
    """

    input_ids: list[int]
    labels: list[int]
    example: int
    alignment: WordAlignment | None = None
    segments: list[int] = field(default_factory=list)
    targets: list[float] = field(default_factory=list)
    characters: list[int] = field(default_factory=list)


# Words whose sub-words are remembered, some 400 bytes each; frequent ones soon come back. A text without
# spaces may be one word of thousands of characters, which nobody will ask for again.
_CACHED_WORDS, _LONGEST_CACHED = 100_000, 100


class Tokenizer:
    """A fast tokenizer of transformers, and the sub-words of words that it has met.

    Args:
        backend: the tokenizer.

    Raises:
        UserError: if it has no padding token.
    """

    def __init__(self, backend: Any):
        self.backend = backend
        if backend.pad_token_id is None:
            raise UserError("model.path: its tokenizer has no padding token")
        self.pad_id: int = backend.pad_token_id
        self.mask_id: int | None = backend.mask_token_id
        self._ordinary: NDArray[np.int64] | None = None
        self.unknown_id: int = self.pad_id if backend.unk_token_id is None else backend.unk_token_id
        self._plain = plain_encoder(backend)
        self._keeps_space = self._has_space_marks()
        self._subwords: dict[Before, dict[str, Subwords]] = {"start": {}, "space": {}, "word": {}}
        self._is_space: dict[int, bool] = {}
        self.prefix, self.suffix = self._special_tokens()

    @property
    def ordinary_ids(self) -> NDArray[np.int64]:
        """Return the ids of all sub-words that are no special tokens, (V,)."""
        if self._ordinary is None:
            special = set(self.backend.all_special_ids)
            self._ordinary = np.array([i for i in range(len(self.backend)) if i not in special])
        return self._ordinary

    def _special_tokens(self) -> tuple[list[int], list[int]]:
        """Return the special tokens before and after a sequence."""
        for probe in ("a", "一", "ا", "1"):  # any script that it has sub-words for
            encoded = self.backend([probe], is_split_into_words=True, return_special_tokens_mask=True)
            ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
            ordinary = [i for i, flag in enumerate(special) if not flag]
            if ordinary:
                return ids[: ordinary[0]], ids[ordinary[-1] + 1 :]
        raise UserError("model.path: its tokenizer makes nothing but special tokens of a letter")

    def _has_space_marks(self) -> bool:
        """Return whether a space before a word is kept, by trying: many tokenizers drop white space first."""
        spaced = self._plain(" a")
        if spaced == self._plain("a"):
            return False
        return str(self.backend.convert_ids_to_tokens(spaced[0])).startswith(tuple(_SPACE_MARKS))

    def continuation(self, text: str) -> list[int]:
        """Return the sub-words of text that follows other text without a space."""
        return self._plain(text)

    def subwords(self, word: str, before: Before = "start") -> Subwords:
        """Return the sub-words of one word; of what normalizes to nothing, the unknown token."""
        known = self._subwords[before]
        found = known.get(word)
        if found is None:
            found = self.locate(self._encode(word, before))
            if len(known) == _CACHED_WORDS:
                known.clear()
            if len(word) <= _LONGEST_CACHED:
                known[word] = found
        return found

    def locate(self, ids: list[int]) -> Subwords:
        """Return sub-words with the first and last of them that are more than a space."""
        own = [i for i, subword in enumerate(ids) if not self._marks_space(subword)] or range(len(ids))
        return Subwords(ids, own[0], own[-1])

    def _encode(self, word: str, before: Before) -> list[int]:
        if before == "word":
            ids = self._plain(word)
        elif before == "space" and self._keeps_space:
            ids = self._plain(f" {word}")
        else:
            ids = list(self.backend([word], is_split_into_words=True, add_special_tokens=False)["input_ids"])
        says_nothing = all(map(self._marks_space, ids))
        if says_nothing and (not ids or word.strip()):
            return [self.unknown_id]
        if before != "space" and not says_nothing:
            ids = ids[self.locate(ids).first :]
        return ids

    def _marks_space(self, subword: int) -> bool:
        """Return whether a sub-word is nothing but space. ``Ġ`` is a letter too, where it is no mark."""
        found = self._is_space.get(subword)
        if found is None:
            token = self.backend.convert_ids_to_tokens(subword)
            found = not token.strip(_SPACE_MARKS) and not self.backend.decode([subword]).strip()
            self._is_space[subword] = found
        return found


def tokenize_words(
    tokenizer: Tokenizer,
    words: Sequence[str],
    classes: Sequence[int] | None,
    max_length: int,
    example: int = 0,
    *,
    spaces: Sequence[bool] | None = None,
    label_place: LabelPlace = "first",
    prefix: str | None = None,
) -> list[TokenizedSequence]:
    """Tokenize a sentence into overlapping sequences, a quarter of each shared with the one before.

    Args:
        tokenizer: of the model.
        words: the sentence.
        classes: class of each word, the label of one of its sub-words; without it nothing is learned.
        max_length: most sub-words of a sequence, special tokens included. Of a word that is longer, the
            first are kept.
        example: index of the example.
        spaces: whether white space follows each word; by default after every word.
        label_place: the sub-word that has a word's label.
        prefix: a word that each sequence begins with, unlabelled; it takes a quarter of one at most.
    """
    room = max_length - len(tokenizer.prefix) - len(tokenizer.suffix)
    before = tokenizer.prefix
    if prefix is not None:
        before = before + tokenizer.subwords(prefix).ids[: room // 4]
        room = max_length - len(before) - len(tokenizer.suffix)
    pieces = list(_pieces(tokenizer, words, spaces, room, "start" if prefix is None else "space"))
    bounds = _bounds([len(piece.ids) for piece in pieces], room)
    sequences = []
    for i, (start, end) in enumerate(bounds):
        first = start if i == 0 else (start + bounds[i - 1][1]) // 2
        last = end if i == len(bounds) - 1 else (bounds[i + 1][0] + end) // 2
        input_ids = list(before)
        places = []
        widths = []
        for piece in pieces[start:end]:
            if label_place == "mean":
                widths.append(piece.last - piece.first + 1)
            places.append(len(input_ids) + (piece.first if label_place == "first" else piece.last))
            input_ids.extend(piece.ids)
        input_ids.extend(tokenizer.suffix)
        labels = [IGNORE_INDEX] * len(input_ids)
        if classes is not None:
            for word in range(first, last):
                labels[places[word - start]] = classes[word]
        alignment = WordAlignment(places, start, (first, last), len(words), widths)
        sequences.append(TokenizedSequence(input_ids, labels, example, alignment))
    return sequences


def _pieces(
    tokenizer: Tokenizer, words: Sequence[str], spaces: Sequence[bool] | None, room: int, first: Before
) -> Iterator[Subwords]:
    """Yield the sub-words of every word, ``room`` at most."""
    after: Sequence[bool] = [True] * len(words) if spaces is None else spaces
    for i, word in enumerate(words):
        piece = tokenizer.subwords(word, first if i == 0 else "space" if after[i - 1] else "word")
        yield piece if len(piece.ids) <= room else tokenizer.locate(piece.ids[:room])


def _bounds(sizes: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Return the first and last word of each sequence, given the sub-words of every word."""
    bounds: list[tuple[int, int]] = []
    start = 0
    while True:
        end, used = start, 0
        while end < len(sizes) and used + sizes[end] <= room:
            used += sizes[end]
            end += 1
        bounds.append((start, end))
        if end == len(sizes):
            return bounds
        back, shared = end, 0
        while back > start + 1 and shared + sizes[back - 1] <= room // 4:
            back -= 1
            shared += sizes[back]
        start = back


def tokenize_text(
    tokenizer: Tokenizer, text: str, max_length: int, example: int = 0
) -> list[TokenizedSequence]:
    """Tokenize a document for a causal language model: each label is the next sub-word.

    A document longer than ``max_length`` continues in the next sequence, which begins with the last
    sub-word of the one before. The last label is the document's end. A document that a tokenizer makes
    nothing of has no sequence.
    """
    backend = tokenizer.backend
    ids = backend(text, add_special_tokens=False)["input_ids"]
    first, last = backend.bos_token_id, backend.eos_token_id
    ids = [*([] if first is None else [first]), *ids, *([] if last is None else [last])]
    sequences = []
    for start in range(0, max(len(ids) - 1, 1) if ids else 0, max_length):
        input_ids = ids[start : start + max_length]
        labels = ids[start + 1 : start + max_length + 1]
        labels += [IGNORE_INDEX] * (len(input_ids) - len(labels))
        sequences.append(TokenizedSequence(input_ids, labels, example))
    return sequences


def whole_text(length: int, place: LabelPlace, last: int | None = None) -> WordAlignment:
    """Return the alignment of a sequence that is classified as a whole: one word.

    Args:
        length: of the sequence, in sub-words.
        place: of the sub-word that stands for it; ``mean`` of all.
        last: index of the last sub-word that counts, by default of the last.
    """
    end = length - 1 if last is None else last
    if place == "mean":
        return WordAlignment([length - 1], 0, (0, 1), 1, [length])
    return WordAlignment([0 if place == "first" else end], 0, (0, 1), 1)


def with_span(sequence: TokenizedSequence, start: int, end: int) -> TokenizedSequence:
    """Return a sequence that learns its span from sub-word ``start`` to ``end``; it counts as one label."""
    labels = [0] + [IGNORE_INDEX] * (len(sequence.input_ids) - 1)
    return replace(sequence, labels=labels, targets=[float(start), float(end)])
