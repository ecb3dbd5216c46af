"""From logits to answers."""

import random

import numpy as np
import pytest
from fangyan.data.tokenization import TokenizedSequence
from fangyan.tasks.extractive_qa.decoding import best_span, join


def window(characters, example=0):
    return TokenizedSequence(
        [0] * len(characters), [], example, characters=[c for pair in characters for c in pair]
    )


@pytest.mark.parametrize("longest", [1, 3, 64])
def test_best_span_is_the_best_of_all(longest):
    draw = np.random.default_rng(0)
    for _ in range(30):
        size = int(draw.integers(2, 20))
        characters = [(-1, -1) if i == 0 or draw.random() < 0.2 else (2 * i, 2 * i + 2) for i in range(size)]
        logits = draw.normal(size=(size, 2))
        found = best_span(window(characters), logits, longest)
        spans = {
            (i, j): logits[i, 0] + logits[j, 1]
            for i in range(size)
            for j in range(i, min(size, i + longest))
            if min(characters[i][0], characters[j][0]) >= 0
        }
        if not spans:
            assert found.start == -1
            continue
        (first, last), score = max(spans.items(), key=lambda item: item[1])
        assert found.score == pytest.approx(score)
        assert (found.start, found.end) == (characters[first][0], characters[last][1])
        assert found.null == pytest.approx(logits[0].sum())
        shares = np.exp(logits) / np.exp(logits).sum(0)
        assert np.exp(found.score - found.total) == pytest.approx(shares[first, 0] * shares[last, 1])


def test_windows_are_joined_in_any_order():
    places = [(-1, -1), (0, 2), (2, 4)]
    outputs = [
        best_span(window(places, 0), np.array([[3.0, 3.0], [1, 0], [0, 1]]), 9),  # nothing here
        best_span(window([(-1, -1), (4, 6), (6, 8)], 0), np.array([[0.0, 0.0], [2, 0], [0, 2]]), 9),
        best_span(window(places, 1), np.array([[3.0, 3.0], [1, 0], [0, 1]]), 9),
    ]
    for seed in range(4):
        random.Random(seed).shuffle(outputs)
        first, second = join(outputs, 2, may_be_none=True)
        assert (first.start, first.end, second.start, second.end) == (4, 8, -1, -1)
        assert second.score == pytest.approx((np.exp(3) / (np.exp(3) + np.e + 1)) ** 2)
        assert [answer.start for answer in join(outputs, 2, may_be_none=False)] == [4, 0]


def test_context_of_nothing_has_no_answer():
    found = best_span(window([(-1, -1)]), np.array([[1.0, 2.0]]), 64)
    assert join([found], 1, may_be_none=False) == [(-1, -1, 1.0)]
