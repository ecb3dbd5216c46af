"""Metrics of resamples by counts, against each task's own metrics of the same examples drawn anew."""

import random
from dataclasses import replace

import numpy as np
import pytest
from fangyan.data.example import Example
from fangyan.tasks.causal_lm.task import CausalLM
from fangyan.tasks.extractive_qa.decoding import SpanOutput as AnswerOutput
from fangyan.tasks.extractive_qa.task import ExtractiveQA
from fangyan.tasks.sequence_classification.task import SequenceClassification, TextOutput
from fangyan.tasks.token_classification.outputs import SpanOutput
from fangyan.tasks.token_classification.scheme import Notation
from fangyan.tasks.token_classification.task import TokenClassification

COUNT = 30


def tagged(labels, scheme, draw):
    """Sentences of random tags, some of them not learned, and outputs that are often right."""
    task = TokenClassification(labels, scheme, notation=Notation("plain" if scheme == "plain" else "iob2"))
    examples, outputs = [], []
    for i in range(COUNT):
        length = draw.randrange(0 if i else 1, 12)
        tags = tuple(draw.choice([*labels, "B-new" if scheme != "plain" else "new"]) for _ in range(length))
        examples.append(Example({"tokens": tuple("x" * length), "tags": tags}, f"f:{i}", str(i)))
        scores = np.log(np.random.default_rng(i).dirichlet(np.ones(len(labels)), length)).astype(np.float32)
        gold = np.array(task.classes(examples[-1]), dtype=np.int64)
        right = (gold >= 0) & (np.random.default_rng(i).random(length) < 0.7)
        scores[right, gold[right]] += 20.0
        outputs.append(SpanOutput(i, 0, task._decode(scores.reshape(length, len(labels)))))
    return task, examples, outputs


def classified(kind, draw):
    labels = ["score"] if kind == "regression" else ["a", "b", "c", "d"]
    task = SequenceClassification(labels, kind)
    examples, outputs = [], []
    for i in range(COUNT):
        label = {
            "single_label_classification": draw.choice(["a", "b", "b", "c", "new"]),
            "multi_label_classification": tuple(draw.sample(["a", "b", "c", "new"], draw.randrange(4))),
            "regression": float(draw.randrange(4)),  # ties
        }[kind]
        examples.append(Example({"text": "x", "label": label}, f"f:{i}", str(i)))
        scores = np.round(np.random.default_rng(i).normal(size=len(labels)), 1).astype(np.float32)
        outputs.append(TextOutput(i, scores))
    return task, examples, outputs


def answered(draw):
    task = ExtractiveQA(may_be_none=True)
    context = "阿明 住 喺 香港 . 阿芬 去 旺角 ."
    examples, outputs = [], []
    for i in range(COUNT):
        start = draw.randrange(8)
        answers = ({"text": context[start : start + 4], "start": start},) if i % 3 else ()
        fields = {"question": "?", "context": context, "answers": answers}
        examples.append(Example(fields, f"f:{i}", str(i)))
        found = draw.randrange(8)
        null = draw.choice([-9.0, 9.0])
        outputs.append(AnswerOutput(i, found, found + draw.randrange(1, 6), 1.0, null, 10.0))
    return task, examples, outputs


def written(draw):
    texts = ["我" * draw.randrange(1, 9) for _ in range(COUNT)]
    examples = [Example({"text": text}, f"f:{i}", text) for i, text in enumerate(texts)]
    return CausalLM(), examples, [(draw.random() * 20, len(text) + 1) for text in texts]


CASES = {
    "words": lambda draw: tagged(["B-n", "I-n", "B-v", "I-v"], "segmentation", draw),
    "entities": lambda draw: tagged(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"], "iob2", draw),
    "labels": lambda draw: tagged(["NOUN", "VERB"], "plain", draw),
    "one class": lambda draw: classified("single_label_classification", draw),
    "several classes": lambda draw: classified("multi_label_classification", draw),
    "numbers": lambda draw: classified("regression", draw),
    "answers": answered,
    "texts": written,
}


def drawn_anew(examples, outputs, weights_E):
    """The examples of a resample, each as often as it occurs, with the outputs of each."""
    places = [i for i, weight in enumerate(weights_E) for _ in range(int(weight))]
    chosen = [outputs[i] for i in places]
    for k, output in enumerate(chosen):
        if isinstance(output, SpanOutput):
            chosen[k] = replace(output, example=k)
        elif hasattr(output, "example"):
            chosen[k] = output._replace(example=k)
    return [examples[i] for i in places], chosen


@pytest.mark.parametrize("name", CASES)
def test_resampler_returns_the_metrics_of_each_resample(name):
    task, examples, outputs = CASES[name](random.Random(7))
    generator = np.random.default_rng(1)
    weights_RE = generator.multinomial(COUNT, np.full(COUNT, 1 / COUNT), size=20).astype(float)
    weights_RE[0] = 1.0  # all, once
    weights_RE[1] = 0.0
    weights_RE[1, 3] = 2.0  # one example alone: a resample without most classes
    resampler = task.resampler(examples, outputs)
    found = resampler(weights_RE)
    assert list(found) == list(task.metric_names)
    for r, weights_E in enumerate(weights_RE):
        expected = task.metrics(*drawn_anew(examples, outputs, weights_E))
        assert {key: values[r] for key, values in found.items()} == pytest.approx(expected, abs=1e-9)
    assert any(np.ptp(values) > 1.0 for values in found.values())


@pytest.mark.parametrize("name", CASES)
def test_resampler_of_a_subset(name):
    task, examples, outputs = CASES[name](random.Random(8))
    chosen = np.array([2, 3, 5, 7, 11, 13, 17])
    weights_E = np.zeros(COUNT)
    weights_E[chosen] = 1.0
    subset = task.resampler(examples, outputs).subset(chosen)
    assert len(subset) == len(chosen)
    expected = task.metrics(*drawn_anew(examples, outputs, weights_E))
    assert subset.metrics() == pytest.approx(expected, abs=1e-9)


def test_a_constant_side_has_no_correlation():
    """As of scipy's: 0 where the numbers of a resample do not vary, whatever rounding makes of it."""
    task = SequenceClassification(["score"], "regression")
    examples = [Example({"text": "x", "label": 0.1 + 0.2 * (i == 0)}, "", "") for i in range(9)]
    outputs = [TextOutput(i, np.array([i / 7], dtype=np.float32)) for i in range(9)]
    weights_E = np.array([0.0] + [1.0] * 8)
    assert task.resampler(examples, outputs)(weights_E[None])["pearson"] == 0.0
