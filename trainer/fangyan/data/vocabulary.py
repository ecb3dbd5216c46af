"""Characters of the data that a tokenizer does not know, or spells in bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fangyan.data.example import Example
from fangyan.data.tokenization import Tokenizer
from fangyan.errors import UserError

# Fields of an example that a model reads.
_READ = ("tokens", "text", "pair", "question", "context")
# Examples whose characters are counted: a few seconds' worth.
_COUNTED = 1_000_000
_CHUNK = 10_000
# What SentencePiece and byte-level tokenizers put before a word; alone it stands for no character.
_SPACES = ("▁", "Ġ")


@dataclass(frozen=True, slots=True)
class Character:
    """A character that has no sub-word of its own.

    Attributes:
        text: the character.
        count: how often it occurs.
        pieces: ids of the sub-words that stand for it.
        unknown: whether one of these is the unknown token.
    """

    text: str
    count: int
    pieces: tuple[int, ...]
    unknown: bool


def characters_without_subword(examples: Sequence[Example], backend: Any) -> list[Character]:
    """Return the characters that a tokenizer has no sub-word for, the most frequent first.

    Args:
        examples: of which the first million are read.
        backend: a fast tokenizer of transformers.
    """
    counts = _count(examples)
    found = {chr(i): int(counts[i]) for i in counts.nonzero()[0] if not chr(i).isspace()}
    characters = [
        Character(text, count, pieces, unknown)
        for (text, count), pieces in zip(found.items(), _pieces(backend, list(found)), strict=True)
        if (unknown := backend.unk_token_id in pieces) or len(pieces) > 1
    ]
    return sorted(characters, key=lambda character: (-character.count, character.text))


def _pieces(backend: Any, characters: list[str]) -> Iterator[tuple[int, ...]]:
    """Yield the sub-words of each character, without those of a space alone."""
    spaces = {backend.convert_tokens_to_ids(space) for space in _SPACES} - {backend.unk_token_id}
    for ids in backend(characters, add_special_tokens=False)["input_ids"] if characters else []:
        yield tuple(i for i in ids if i not in spaces)


def _count(examples: Sequence[Example]) -> NDArray[np.int64]:
    """Return how often each code point occurs, (1,114,112,)."""
    counts = np.zeros(0x110000, dtype=np.int64)
    stream = islice(iter(examples), _COUNTED)
    while chunk := list(islice(stream, _CHUNK)):
        text = "".join(_text_of(example) for example in chunk)
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        counts += np.bincount(codes, minlength=len(counts))
    return counts


def _text_of(example: Example) -> str:
    """Return everything of an example that a model reads."""
    parts = ["".join(example.fields.get(name, "")) for name in _READ]
    return "".join([*parts, *(message["content"] for message in example.fields.get("messages", ()))])


def unknown_characters(characters: Sequence[Character]) -> str | None:
    """Return a message on the characters that are unknown, or None."""
    unknown = [character for character in characters if character.unknown]
    if not unknown:
        return None
    frequent = ", ".join(f"{character.text} {character.count:,}" for character in unknown[:8])
    times = sum(character.count for character in unknown)
    return (
        f"characters unknown to the tokenizer: {len(unknown):,}, which occur "
        f"{'once' if times == 1 else f'{times:,} times'} ({frequent}"
        f"{', …' if len(unknown) > 8 else ''}), all of them the same to the model; "
        "model.extend_vocabulary adds the most frequent"
    )


def check_prefixes(names: Sequence[str], tokenizer: Tokenizer) -> None:
    """Refuse names of data sets that a model could not tell apart.

    Raises:
        UserError: naming one that is unknown to the tokenizer, or two that are one to it.
    """
    known: dict[tuple[int, ...], str] = {}
    for name in names:
        ids = tuple(tokenizer.subwords(name).ids)
        if tokenizer.backend.unk_token_id in ids:
            raise UserError(
                f"data.prefix: the name {name} is unknown to the tokenizer, expected names of letters that "
                "it knows"
            )
        if ids in known:
            raise UserError(f"data.prefix: {known[ids]} and {name} are one to the tokenizer, expected others")
        known[ids] = name
