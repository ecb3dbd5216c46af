"""A fast tokenizer without the space that it puts before a text by itself.

SentencePiece and byte-level tokenizers write a space as ``▁`` or ``Ġ`` before what follows it, and many put
one before every text. Before a token that follows another without a space, it would say what is not so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from tokenizers import normalizers, pre_tokenizers

Encode = Callable[[str], list[int]]


def plain_encoder(backend: Any) -> Encode:
    """Return the encoder of a tokenizer of transformers that adds no special token and no space.

    Where the tokenizer puts no space before a text, it is its own; else that of a copy, since settings of a
    tokenizer are saved with it. Copying one of 250,000 sub-words takes half a second.
    """
    fast = getattr(backend, "backend_tokenizer", None)
    if fast is None or not any(_puts_space(part) for part in _parts(fast)):
        return lambda text: list(backend(text, add_special_tokens=False)["input_ids"])
    fast = copy.deepcopy(fast)
    fast.no_truncation()
    fast.no_padding()
    for part in _parts(fast):
        if isinstance(part, pre_tokenizers.ByteLevel):
            part.add_prefix_space = False
        elif isinstance(part, pre_tokenizers.Metaspace):
            part.prepend_scheme = "never"
        elif isinstance(part, normalizers.Prepend):
            part.prepend = ""
    return lambda text: list(fast.encode(text, add_special_tokens=False).ids)


def _parts(tokenizer: Any) -> Iterator[Any]:
    """Yield the normalizers and pre-tokenizers of a tokenizer, those within sequences too."""
    stack: list[Any] = [tokenizer.normalizer, tokenizer.pre_tokenizer]
    while stack:
        part = stack.pop()
        if isinstance(part, normalizers.Sequence | pre_tokenizers.Sequence):
            stack.extend(part)  # type: ignore[arg-type]  # by its __getitem__
        elif part is not None:
            yield part


def _puts_space(part: Any) -> bool:
    if isinstance(part, pre_tokenizers.ByteLevel):
        return bool(part.add_prefix_space)
    if isinstance(part, pre_tokenizers.Metaspace):
        return str(part.prepend_scheme) != "never"
    return isinstance(part, normalizers.Prepend)
