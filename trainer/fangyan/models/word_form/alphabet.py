"""The characters of a language as a tokenizer, and what a model knows of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# Before each word: a code point that is no character, so that no text has it.
BOUNDARY = "\ue000"
_SPECIAL = ("[PAD]", "[UNK]", "[MASK]", BOUNDARY)
# Of what is no letter and no digit.
_OTHER = 4


def character_tokenizer(words: Iterable[str]) -> Any:
    """Return a tokenizer whose tokens are the characters of some words, and a mark before each word.

    Args:
        words: of the training data.
    """
    characters = {character for word in words for character in word}
    characters |= {character.lower() for character in characters if len(character.lower()) == 1}
    ordered = sorted(
        character for character in characters if not character.isspace() and character != BOUNDARY
    )
    vocabulary = {token: i for i, token in enumerate([*_SPECIAL, *ordered])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Replace(Regex(r"(^|\s+)(?=\S)"), BOUNDARY)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
    )


def shape_class(character: str) -> int:
    """Return a character's kind: a lower-case or caseless letter, a capital, a digit, or anything else."""
    if character.isupper():
        return 2
    if character.isdigit():
        return 3
    return 1 if character.isalpha() else _OTHER


def alphabet(tokenizer: Any) -> dict[str, Any]:
    """Return the part of a model's configuration that follows from a :func:`character_tokenizer`."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    lower_ids, shape_classes = list(range(len(vocabulary))), [_OTHER] * len(vocabulary)
    for token, i in vocabulary.items():
        if token not in _SPECIAL:
            lower_ids[i] = vocabulary.get(token.lower(), i)
            shape_classes[i] = shape_class(token)
    return {
        "vocab_size": len(vocabulary),
        "lower_ids": lower_ids,
        "shape_classes": shape_classes,
        "boundary_token_id": vocabulary[BOUNDARY],
        "pad_token_id": tokenizer.pad_token_id,
    }
