"""A sentence around a text with a gap, whose word says the class of the text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fangyan.config import short
from fangyan.data.tokenization import Tokenizer
from fangyan.errors import UserError

TEXT, PAIR, GAP = "text", "pair", "gap"


class Pattern:
    """A pattern such as ``{text} It was {gap}.``; ``{pair}`` is the second text, where there are two.

    Args:
        pattern: with one ``{gap}`` and one ``{text}``.

    Raises:
        ValueError: if it is none.
    """

    def __init__(self, pattern: str):
        self.pattern = pattern
        self._parts = re.split(r"\{(\w*)\}", pattern)
        fields = self._parts[1::2]
        counts = {name: fields.count(name) for name in (TEXT, PAIR, GAP)}
        if set(fields) - counts.keys() or counts[TEXT] != 1 or counts[GAP] != 1 or counts[PAIR] > 1:
            raise ValueError(
                f"pattern is {short(pattern)}, expected one {{text}} and one {{gap}} in it, and for pairs "
                "one {pair}"
            )
        self.has_pair = counts[PAIR] == 1

    def tokenize(
        self, texts: Mapping[str, str], tokenizer: Tokenizer, max_length: int
    ) -> tuple[list[int], int]:
        """Return the sub-words of a filled pattern, and where its gap is.

        The longer text loses its end where both do not fit.

        Args:
            texts: by field.
            tokenizer: with a mask token.
            max_length: most sub-words.

        Raises:
            UserError: if the pattern alone is longer.
        """
        fitting = dict(texts)
        while len((found := self._encode(fitting, tokenizer))[0]) > max_length:
            sizes = {name: len(_offsets(text, tokenizer)) for name, text in fitting.items()}
            longest = max(sizes, key=lambda name: sizes[name])
            if not fitting[longest]:
                raise UserError(
                    f"task.pattern: has {len(found[0]):,} sub-words without a text, expected fewer than "
                    f"{max_length:,}"
                )
            excess = len(found[0]) - max_length
            ahead = 2 * sizes[longest] - sum(sizes.values()) if len(sizes) > 1 else excess
            cut = min(excess, ahead) if ahead else -(-excess // 2)
            fitting[longest] = _beginning(fitting[longest], sizes[longest] - cut, tokenizer)
        return found

    def _encode(self, texts: Mapping[str, str], tokenizer: Tokenizer) -> tuple[list[int], int]:
        filled = {**texts, GAP: tokenizer.backend.mask_token}
        # Every other part is the name of a field.
        pieces = [filled[part] if i % 2 else part for i, part in enumerate(self._parts)]
        start = len("".join(pieces[: 1 + 2 * self._parts[1::2].index(GAP)]))
        encoded = tokenizer.backend("".join(pieces), return_offsets_mapping=True)
        ids: list[int] = encoded["input_ids"]
        # Texts may have the mask token in them, too; of some tokenizers the space before it is part of it.
        places = [
            place
            for place, (first, last) in enumerate(encoded["offset_mapping"])
            if ids[place] == tokenizer.mask_id and first <= start < last
        ]
        if len(places) != 1:
            raise UserError(
                f"task.pattern: the tokenizer takes its gap for {len(places)} mask tokens, expected one; a "
                "space before {gap} may help"
            )
        return ids, places[0]


def _offsets(text: str, tokenizer: Tokenizer) -> list[tuple[int, int]]:
    encoded = tokenizer.backend(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets: list[tuple[int, int]] = encoded["offset_mapping"]
    return offsets


def _beginning(text: str, subwords: int, tokenizer: Tokenizer) -> str:
    """Return so many sub-words of a text, or fewer; always less than all of it."""
    offsets = _offsets(text, tokenizer)
    end = offsets[subwords - 1][1] if 0 < subwords <= len(offsets) else 0
    return text[: min(end, len(text) - 1)]


def word_ids(words: dict[str, str], tokenizer: Any) -> list[int]:
    """Return the sub-word of the word of each class, in order.

    Args:
        words: by class.
        tokenizer: of transformers.

    Raises:
        UserError: if a word is no sub-word of the model, or that of another class.
    """
    found: dict[int, str] = {}
    behind = Tokenizer(tokenizer)
    for label, word in words.items():
        # As it is after a space, as it is at the beginning of a text, or right behind other text, without the
        # mark of a space that is a sub-word of its own before Chinese characters: the same for most.
        spellings = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (f" {word}", word)]
        spellings.append(behind.subwords(word, "word").ids)
        ids = next((own for own in spellings if len(own) == 1), spellings[-1])
        if len(ids) != 1 or ids[0] in tokenizer.all_special_ids:
            raise UserError(
                f"task.words: {short(word)} of {short(label)} is {len(ids)} sub-words of the model, or "
                "unknown to it; expected a word that is one of its sub-words"
            )
        if ids[0] in found:
            raise UserError(
                f"task.words: {short(word)} is the word of {short(found[ids[0]])} and of {short(label)}, "
                "expected one for each"
            )
        found[ids[0]] = label
    return list(found)
