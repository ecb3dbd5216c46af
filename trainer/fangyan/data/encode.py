"""From tokens to the model's sub-words: every labelled token keeps a sub-word of its own.

Each token is tokenized by itself and remembered. Aligning a whole sentence by the tokenizer's
``word_ids`` fails silently where normalization moves characters (huggingface/tokenizers 1663):
diacritics do it, and dialect orthographies are full of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fangyan.errors import UserError

IGNORE = -100


@dataclass(frozen=True, slots=True)
class Window:
    """A piece of an example that fits the model; short examples are one window.

    Attributes:
        input_ids: sub-words with the model's special tokens around them.
        first: index into ``input_ids`` of the first sub-word of each token in the window.
        start: the example's token that the window begins with.
        owned: slice bounds, in tokens of the example, that this window answers for. The owned
            slices of an example's windows tile it: each token is trained on, and predicted, once,
            in the window where it has most context.
        targets: class of every sub-word, ``IGNORE`` where there is none.
    """

    input_ids: list[int]
    first: list[int]
    start: int
    owned: tuple[int, int]
    targets: list[int]


class Encoder:
    """Turns examples into windows.

    Args:
        tokenizer: a fast tokenizer of transformers.
        max_length: most sub-words in a window, special tokens included.
    """

    def __init__(self, tokenizer: Any, max_length: int):
        self.tokenizer = tokenizer
        self.max_length = max_length
        if tokenizer.pad_token_id is None:
            raise UserError("model.path: its tokenizer has no padding token")
        self.pad_id: int = tokenizer.pad_token_id
        unknown = tokenizer.unk_token_id
        self._blank: int = self.pad_id if unknown is None else unknown
        self._ids: dict[str, list[int]] = {}
        self._prefix, self._suffix = self._special_tokens()
        self._room = max_length - len(self._prefix) - len(self._suffix)

    def _special_tokens(self) -> tuple[list[int], list[int]]:
        plain = self.tokenizer(["a"], is_split_into_words=True, add_special_tokens=False)["input_ids"]
        full = self.tokenizer(["a"], is_split_into_words=True)["input_ids"]
        for start in range(len(full) - len(plain) + 1):
            if full[start : start + len(plain)] == plain:
                return full[:start], full[start + len(plain) :]
        return [], []

    def subwords(self, token: str) -> list[int]:
        """The ids of one token, never empty: what normalizes to nothing is the unknown token."""
        ids = self._ids.get(token)
        if ids is None:
            encoded = self.tokenizer([token], is_split_into_words=True, add_special_tokens=False)
            ids = self._ids[token] = (encoded["input_ids"] or [self._blank])[: self._room]
        return ids

    def windows(self, tokens: tuple[str, ...], classes: list[int] | None = None) -> list[Window]:
        """Overlapping windows over a sentence, a quarter of each shared with the one before.

        Args:
            tokens: the sentence.
            classes: class of each token; without it every target is ``IGNORE``.
        """
        pieces = [self.subwords(token) for token in tokens]
        bounds = self._bounds([len(piece) for piece in pieces])
        windows = []
        for number, (start, end) in enumerate(bounds):
            left = start if number == 0 else (start + bounds[number - 1][1]) // 2
            right = end if number == len(bounds) - 1 else (bounds[number + 1][0] + end) // 2
            windows.append(self._window(pieces, classes, start, end, (left, right)))
        return windows

    def text_windows(self, text: str) -> list[Window]:
        """A document for a language model: each target is the next sub-word, the last the document's end.

        What is longer than the model takes goes on in the next window, which begins with the last sub-word
        of the one before.
        """
        tokenizer = self.tokenizer
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
        ids = [*([] if first is None else [first]), *ids, *([] if last is None else [last])]
        step = self.max_length
        windows = []
        for start in range(0, max(len(ids) - 1, 1), step):
            input_ids, targets = ids[start : start + step], ids[start + 1 : start + step + 1]
            targets += [IGNORE] * (len(input_ids) - len(targets))
            windows.append(Window(input_ids, [], 0, (0, 0), targets))
        return windows

    def _bounds(self, sizes: list[int]) -> list[tuple[int, int]]:
        bounds: list[tuple[int, int]] = []
        start = 0
        while True:
            end, used = start, 0
            while end < len(sizes) and used + sizes[end] <= self._room:
                used += sizes[end]
                end += 1
            bounds.append((start, end))
            if end == len(sizes):
                return bounds
            back = end
            while back > start + 1 and sum(sizes[back - 1 : end]) <= self._room // 4:
                back -= 1
            start = back

    def _window(
        self,
        pieces: list[list[int]],
        classes: list[int] | None,
        start: int,
        end: int,
        owned: tuple[int, int],
    ) -> Window:
        input_ids = list(self._prefix)
        first = []
        for piece in pieces[start:end]:
            first.append(len(input_ids))
            input_ids.extend(piece)
        input_ids.extend(self._suffix)
        targets = [IGNORE] * len(input_ids)
        if classes is not None:
            for token in range(*owned):
                targets[first[token - start]] = classes[token]
        return Window(input_ids, first, start, owned, targets)
