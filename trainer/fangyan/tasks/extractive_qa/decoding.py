"""From the logits of windows to the answer of each question."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fangyan.data.tokenization import TokenizedSequence
from fangyan.tasks.extractive_qa.alignment import NOWHERE


class SpanOutput(NamedTuple):
    """The best span of one window.

    Attributes:
        example: index of its example.
        start: first character of the span, -1 if the window has none.
        end: behind its last.
        score: sum of its start and end logit.
        null: of the first sub-word, which stands for no answer.
        total: logarithm of what the exponential of a score is divided by, to be a probability.
    """

    example: int
    start: int
    end: int
    score: float
    null: float
    total: float


class Answer(NamedTuple):
    """What a model answers.

    Attributes:
        start: first character of the context, -1 where there is no answer.
        end: behind its last.
        score: probability of the span, or of no answer, within its window.
    """

    start: int
    end: int
    score: float


def best_span(sequence: TokenizedSequence, logits_T2: NDArray[np.float64], longest: int) -> SpanOutput:
    """Return the best span of a window.

    Args:
        sequence: the window, with its characters.
        logits_T2: start and end logit of each sub-word, (T, 2).
        longest: most sub-words of a span.
    """
    characters_T2 = np.array(sequence.characters).reshape(-1, 2)
    null = float(logits_T2[0].sum())
    total = float(np.logaddexp.reduce(logits_T2, axis=0).sum())
    inside = characters_T2[:, 0] >= 0
    start_T, end_T = np.where(inside[:, None], logits_T2, -np.inf).T
    best, first, last = -np.inf, 0, 0
    for width in range(min(longest, len(start_T))):
        sums = start_T[: len(start_T) - width] + end_T[width:]
        place = int(sums.argmax())
        if sums[place] > best:
            best, first, last = float(sums[place]), place, place + width
    start, end = NOWHERE
    if inside.any():
        start, end = int(characters_T2[first, 0]), int(characters_T2[first : last + 1, 1].max())
    return SpanOutput(sequence.example, start, end, best, null, total)


def join(outputs: Iterable[SpanOutput], count: int, may_be_none: bool) -> list[Answer]:
    """Return the answer to each of ``count`` questions: the best span of all of its windows.

    There is none where the least score of no answer among the windows exceeds that of the span (Devlin et al.
    2019, arXiv 1810.04805, section 4.3, with a threshold of 0).

    Args:
        outputs: of all windows, in any order.
        count: how many questions there are.
        may_be_none: whether there may be no answer.
    """
    best: dict[int, SpanOutput] = {}
    nulls: dict[int, SpanOutput] = {}
    for output in outputs:
        # Of equal scores the first in the text, whatever the order.
        best[output.example] = max(
            output, best.get(output.example, output), key=lambda found: (found.score, -found.start)
        )
        nulls[output.example] = min(
            output, nulls.get(output.example, output), key=lambda found: (found.null, found.total)
        )
    return [_answer(best[i], nulls[i], may_be_none) for i in range(count)]


def _answer(best: SpanOutput, least: SpanOutput, may_be_none: bool) -> Answer:
    if best.start < 0 or (may_be_none and least.null > best.score):
        return Answer(*NOWHERE, float(np.exp(least.null - least.total)))
    return Answer(best.start, best.end, float(np.exp(best.score - best.total)))
