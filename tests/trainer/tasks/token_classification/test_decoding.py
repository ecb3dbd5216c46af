"""Decoding against exhaustive search."""

from itertools import product

import numpy as np
import pytest
from fangyan.errors import UserError
from fangyan.tasks.token_classification.decoding import SpanDecoder, WordDecoder, best_classes, make_decoder


def well_formed(tags):
    previous = "O"
    for tag in tags:
        if tag.startswith("I-") and previous not in (f"B-{tag[2:]}", tag):
            return False
        previous = tag
    return True


@pytest.mark.parametrize("labels", [["B-n", "I-n", "B-v", "I-v"], ["O", "B-x", "I-x"], ["B-n", "I-n", "B-v"]])
@pytest.mark.parametrize("seed", range(20))
def test_span_decoder_is_exhaustive_search(labels, seed):
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(generator.integers(1, 6), len(labels))).astype(np.float32)
    candidates = [
        path
        for path in product(range(len(labels)), repeat=len(scores))
        if well_formed([labels[i] for i in path])
    ]
    best = max(candidates, key=lambda path: sum(scores[t, i] for t, i in enumerate(path)))
    assert SpanDecoder(labels)(scores) == list(best)


@pytest.mark.parametrize("seed", range(20))
def test_word_decoder_decides_on_whole_words(seed):
    """Against the definition, word by word: the boundaries first, then the best tag of each word."""
    labels = ["B-n", "I-n", "B-v", "I-v", "B-u", "I-u"]
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(generator.integers(1, 12), 6)) * 2
    scores = (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)
    begins = [t == 0 or sum(np.exp(scores[t, [0, 2, 4]])) > 0.5 for t in range(len(scores))]
    starts = [t for t, begin in enumerate(begins) if begin]
    expected = []
    for start, end in zip(starts, [*starts[1:], len(scores)], strict=True):
        votes = [
            scores[start, 2 * k] + sum(scores[t, 2 * k + 1] for t in range(start + 1, end)) for k in range(3)
        ]
        best = int(np.argmax(votes))
        expected += [2 * best] + [2 * best + 1] * (end - start - 1)
    found = WordDecoder(labels)(scores)
    assert found == expected
    assert well_formed([labels[i] for i in found])


def test_decoders_of_an_empty_sentence():
    for decoder in (SpanDecoder, WordDecoder):
        assert decoder(["B-n", "I-n"])(np.zeros((0, 2), np.float32)) == []
    assert best_classes(np.zeros((0, 2), np.float32)) == []


def test_make_decoder_by_scheme():
    assert type(make_decoder(["B-n", "I-n"], "segmentation")) is WordDecoder
    assert type(make_decoder(["O", "B-n", "I-n"], "iob2")) is SpanDecoder
    scores = np.array([[0.1, 0.9], [0.8, 0.2]], np.float32)
    assert make_decoder(["n", "v"], "plain")(scores) == [1, 0]


@pytest.mark.parametrize(
    ("labels", "missing"), [(["B-n", "I-n", "B-v"], "I-v"), (["B-n", "I-n", "I-v"], "a B-")]
)
def test_word_decoder_of_a_tag_without_its_other_half(labels, missing):
    with pytest.raises(
        UserError,
        match=f"task.labels: scheme segmentation takes B-x and I-x for every x, {missing} is missing",
    ):
        WordDecoder(labels)
