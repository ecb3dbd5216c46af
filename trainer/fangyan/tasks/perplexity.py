"""Perplexities of a text, from its summed loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fangyan.data.example import Example
from fangyan.tasks.task import Metrics


def perplexities(
    names: Sequence[str], examples: Sequence[Example], outputs: Sequence[tuple[float, int]]
) -> Metrics:
    """Return perplexity per character and per sub-word, and bits per character.

    Args:
        names: of the three.
        examples: with ``text``, whose characters count.
        outputs: summed losses in nats, and how many sub-words they are of.
    """
    characters = sum(len(example.fields["text"]) for example in examples)
    return summed_perplexities(names, characters, outputs)


def summed_perplexities(
    names: Sequence[str], characters: int, outputs: Sequence[tuple[float, int]]
) -> Metrics:
    """Return :func:`perplexities` of texts of so many characters."""
    loss = sum(loss for loss, _ in outputs)
    subwords = sum(count for _, count in outputs)
    if not subwords or not characters:
        return dict.fromkeys(names, math.inf)
    values = (_exp(loss / characters), _exp(loss / subwords), loss / characters / math.log(2))
    return dict(zip(names, values, strict=True))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
