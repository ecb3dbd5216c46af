"""Decoding against exhaustive search, tag sets, and tags outside them."""

from itertools import product

import numpy as np
import pytest
from fangyan.data.examples import Example
from fangyan.errors import UserError
from fangyan.recipe import Task
from fangyan.tasks.decode import SpanDecoder, WordDecoder
from fangyan.tasks.token_tagging import TokenTagging, infer_scheme


def well_formed(tags):
    previous = "O"
    for tag in tags:
        if tag.startswith("I-") and previous not in (f"B-{tag[2:]}", tag):
            return False
        previous = tag
    return True


@pytest.mark.parametrize("labels", [["B-n", "I-n", "B-v", "I-v"], ["O", "B-x", "I-x"], ["B-n", "I-n", "B-v"]])
@pytest.mark.parametrize("seed", range(20))
def test_decoding_is_exhaustive_search(labels, seed):
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
def test_words_are_decided_whole(seed):
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


def test_decoding_nothing():
    for decoder in (SpanDecoder, WordDecoder):
        assert decoder(["B-n", "I-n"])(np.zeros((0, 2), np.float32)) == []


def test_a_word_tag_without_its_other_half():
    with pytest.raises(
        UserError, match="task.labels: scheme words takes B-x and I-x for every x, I-v is missing"
    ):
        TokenTagging(["B-n", "I-n", "B-v"], "words")


def example(tags, source="x.conll:7"):
    return Example(tuple("字" * len(tags)), tuple(tags), source, "g")


def test_tag_set_of_the_data_has_both_prefixes():
    task = TokenTagging.from_data(Task(), {"train": [example(["B-n", "B-v"])], "dev": [example(["B-u"])]})
    assert task.scheme == "words"
    assert task.labels == ["B-n", "I-n", "B-u", "I-u", "B-v", "I-v"]
    assert task.metric == "joint_f1"


def test_schemes():
    assert infer_scheme(["B-n", "I-n"]) == "words"
    assert infer_scheme(["B-n", "I-n", "O"]) == "entities"
    assert infer_scheme(["n", "v"]) == "labels"
    task = TokenTagging.from_data(Task(), {"train": [example(["O", "B-PER"])]})
    assert task.labels == ["O", "B-PER", "I-PER"]
    assert set(task.score_names) == {"token_accuracy", "entity_precision", "entity_recall", "entity_f1"}


def test_a_tag_outside_the_tag_set_is_named():
    task = TokenTagging.from_data(Task(labels=["n", "v"], scheme="labels"), {"train": []})
    with pytest.raises(
        UserError, match=r"x.conll:7: tag 'adj' at token '字' is not in the tag set of 2: n, v"
    ):
        task.classes(example(["n", "adj"]))
