"""What evaluation keeps of a tagger's batches, joined to sentences; and tokens as prompts ask for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fangyan.data.example import Example
from fangyan.tasks.task import Unit

# Around the token that is asked for, of which a sentence may have several.
_MARKS = "«", "»"


@dataclass(frozen=True, slots=True)
class SpanOutput:
    """The output of one sequence.

    Attributes:
        example: index of its example.
        start: of the words that the sequence scores.
        classes: of those words, decoded, where they are the whole example: (words,).
        log_probabilities_TC: of those words, where other sequences have the rest, or they are asked for:
            (words, C).
        hidden_TH: what the head reads of those words, where it is asked for: (words, H).
    """

    example: int
    start: int
    classes: list[int] | None
    log_probabilities_TC: NDArray[np.float32] | None = None
    hidden_TH: NDArray[np.float32] | None = None


def whole_examples(
    outputs: Iterable[SpanOutput], field: Literal["log_probabilities_TC", "hidden_TH"]
) -> dict[int, NDArray[np.float32]]:
    """Return a field of each example that outputs have it of, with a row for each word."""
    spans: dict[int, list[tuple[int, NDArray[np.float32]]]] = {}
    for output in outputs:
        rows = getattr(output, field)
        if rows is not None:
            spans.setdefault(output.example, []).append((output.start, rows))
    return {
        example: np.concatenate([rows for _, rows in sorted(parts, key=lambda part: part[0])])
        for example, parts in spans.items()
    }


def marked_tokens(example: Example, labels: Sequence[str], spaced: bool) -> list[Unit]:
    """Return each token of an example, with the sentence, and with the sentence in which it is marked.

    Args:
        example: with tokens, and maybe with ``spaces``.
        labels: one for each.
        spaced: whether white space follows tokens, where the example does not say.
    """
    tokens = example.fields["tokens"]
    spaces = example.fields.get("spaces", (spaced,) * len(tokens))
    pieces = [token + " " * space for token, space in zip(tokens, spaces, strict=True)]
    sentence = "".join(pieces).rstrip()
    units = []
    for i, (token, label) in enumerate(zip(tokens, labels, strict=True)):
        around = [*pieces[:i], _MARKS[0], token, _MARKS[1], " " * spaces[i], *pieces[i + 1 :]]
        fields = {"sentence": sentence, "marked": "".join(around).rstrip(), "token": token}
        units.append(Unit(fields, label))
    return units
