"""From text to the model's sub-words: every labelled token keeps a sub-word of its own.

Each token is tokenized by itself and remembered. Aligning a whole sentence by the tokenizer's
``word_ids`` fails silently where normalization moves characters (huggingface/tokenizers 1663):
diacritics do it, and dialect orthographies are full of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fangyan.errors import UserError

IGNORE_INDEX = -100


@dataclass(frozen=True, slots=True)
class WordAlignment:
    """Where the words of an example are in one of its sequences.

    Attributes:
        word_starts: index into ``input_ids`` of the first sub-word of each word in the sequence.
        start: the example's word that the sequence begins with.
        span: slice bounds, in words of the example, that this sequence scores. The spans of an example's
            sequences tile it: each word is trained on, and predicted, once, in the sequence where it has
            most context (the max-context span of BERT's SQuAD).
        num_words: words of the whole example.
    """

    word_starts: list[int]
    start: int
    span: tuple[int, int]
    num_words: int


@dataclass(frozen=True, slots=True)
class TokenizedSequence:
    """An example, or a piece of one, that fits the model.

    Attributes:
        input_ids: sub-words, with the model's special tokens around them.
        labels: class of every sub-word, ``IGNORE_INDEX`` where nothing is learned.
        example: index of the example that it is of.
        alignment: its words, where a task works by words.
    """

    input_ids: list[int]
    labels: list[int]
    example: int
    alignment: WordAlignment | None = None


class Tokenizer:
    """A fast tokenizer of transformers, and the sub-words of every word that it has met.

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
        self._unknown: int = self.pad_id if backend.unk_token_id is None else backend.unk_token_id
        self._subwords: dict[str, list[int]] = {}
        self.prefix, self.suffix = self._special_tokens()

    def _special_tokens(self) -> tuple[list[int], list[int]]:
        """Return the special tokens before and after a sequence."""
        for probe in ("a", "一", "ا", "1"):  # any script that it has sub-words for
            encoded = self.backend([probe], is_split_into_words=True, return_special_tokens_mask=True)
            ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
            ordinary = [i for i, flag in enumerate(special) if not flag]
            if ordinary:
                return ids[: ordinary[0]], ids[ordinary[-1] + 1 :]
        raise UserError("model.path: its tokenizer makes nothing but special tokens of a letter")

    def subwords(self, word: str) -> list[int]:
        """Return the ids of one word, never empty: what normalizes to nothing is the unknown token."""
        ids = self._subwords.get(word)
        if ids is None:
            encoded = self.backend([word], is_split_into_words=True, add_special_tokens=False)
            ids = self._subwords[word] = encoded["input_ids"] or [self._unknown]
        return ids


def tokenize_words(
    tokenizer: Tokenizer,
    words: Sequence[str],
    classes: Sequence[int] | None,
    max_length: int,
    example: int = 0,
) -> list[TokenizedSequence]:
    """Tokenize a sentence into overlapping sequences, a quarter of each shared with the one before.

    Args:
        tokenizer: of the model.
        words: the sentence.
        classes: class of each word, the label of its first sub-word; without it nothing is learned.
        max_length: most sub-words of a sequence, special tokens included. Of a word that is longer, the
            first are kept.
        example: index of the example.
    """
    room = max_length - len(tokenizer.prefix) - len(tokenizer.suffix)
    pieces = [tokenizer.subwords(word)[:room] for word in words]
    bounds = _bounds([len(piece) for piece in pieces], room)
    sequences = []
    for i, (start, end) in enumerate(bounds):
        first = start if i == 0 else (start + bounds[i - 1][1]) // 2
        last = end if i == len(bounds) - 1 else (bounds[i + 1][0] + end) // 2
        input_ids = list(tokenizer.prefix)
        word_starts = []
        for piece in pieces[start:end]:
            word_starts.append(len(input_ids))
            input_ids.extend(piece)
        input_ids.extend(tokenizer.suffix)
        labels = [IGNORE_INDEX] * len(input_ids)
        if classes is not None:
            for word in range(first, last):
                labels[word_starts[word - start]] = classes[word]
        alignment = WordAlignment(word_starts, start, (first, last), len(words))
        sequences.append(TokenizedSequence(input_ids, labels, example, alignment))
    return sequences


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
        back = end
        while back > start + 1 and sum(sizes[back - 1 : end]) <= room // 4:
            back -= 1
        start = back


def tokenize_text(
    tokenizer: Tokenizer, text: str, max_length: int, example: int = 0
) -> list[TokenizedSequence]:
    """Tokenize a document for a causal language model: each label is the next sub-word.

    A document longer than ``max_length`` continues in the next sequence, which begins with the last
    sub-word of the one before. The last label is the document's end.
    """
    backend = tokenizer.backend
    ids = backend(text, add_special_tokens=False)["input_ids"]
    first, last = backend.bos_token_id, backend.eos_token_id
    ids = [*([] if first is None else [first]), *ids, *([] if last is None else [last])]
    sequences = []
    for start in range(0, max(len(ids) - 1, 1), max_length):
        input_ids = ids[start : start + max_length]
        labels = ids[start + 1 : start + max_length + 1]
        labels += [IGNORE_INDEX] * (len(input_ids) - len(labels))
        sequences.append(TokenizedSequence(input_ids, labels, example))
    return sequences
