"""Tag sets, schemes, and tags outside them."""

import numpy as np
import pytest
from fangyan.data.example import Example
from fangyan.data.formats.conll import Conll
from fangyan.errors import UserError
from fangyan.tasks.token_classification.scheme import infer_scheme
from fangyan.tasks.token_classification.task import (
    SpanOutput,
    TokenClassification,
    TokenClassificationConfig,
)


def example(tags, source="x.conll:7"):
    return Example({"tokens": tuple("字" * len(tags)), "tags": tuple(tags)}, source, "g")


def test_fit_has_both_prefixes_of_every_tag():
    splits = {"train": [example(["B-n", "B-v"])], "dev": [example(["B-u"])]}
    task = TokenClassificationConfig().fit(splits)
    assert task.scheme == "segmentation"
    assert task.labels == ["B-n", "I-n", "B-u", "I-u", "B-v", "I-v"]
    assert task.primary_metric == "joint_f1"
    assert task.warnings(splits) == ["tags that never occur in train: B-u"]


def test_infer_scheme():
    assert infer_scheme(["B-n", "I-n"]) == "segmentation"
    assert infer_scheme(["B-n", "I-n", "O"]) == "iob2"
    assert infer_scheme(["n", "v"]) == "plain"


def test_fit_of_entities():
    task = TokenClassificationConfig().fit({"train": [example(["O", "B-PER"])]})
    assert task.labels == ["O", "B-PER", "I-PER"]
    assert set(task.metric_names) == {"token_accuracy", "entity_precision", "entity_recall", "entity_f1"}
    assert task.primary_metric == "entity_f1"


def test_classes_of_a_tag_outside_the_tag_set():
    config = TokenClassificationConfig(labels=["n", "v"], scheme="plain")
    task = config.fit({"train": []})
    message = r"x.conll:7: tag 'adj' at token '字' is not in the tag set of 2: n, v"
    with pytest.raises(UserError, match=message):
        task.classes(example(["n", "adj"]))
    with pytest.raises(UserError, match=message):
        config.build({"train": [example(["n"])], "dev": [example(["n", "adj"])]}, Conll(train="x.conll"))
    assert task.classes(example(["v", "n"])) == [1, 0]


def test_from_export_is_the_task_that_was_exported():
    task = TokenClassification(["O", "B-LOC", "I-LOC"], "iob2", "characters")

    class Exported:
        num_labels = 3
        id2label = task.model_kwargs()["id2label"]

    again = TokenClassificationConfig.from_export(task.export_config(), Exported)
    assert (again.labels, again.scheme, again.token_unit) == (task.labels, task.scheme, task.token_unit)


def test_join_decodes_a_long_sentence_whole():
    """Its sequences' log-probabilities come in any order, beside sentences that are decoded already."""
    task = TokenClassification(["O", "B-x", "I-x"], "iob2")
    whole = np.log(np.random.default_rng(0).dirichlet(np.ones(3), 9)).astype(np.float32)
    spans = [SpanOutput(1, start, None, whole[start:end]) for start, end in ((5, 9), (0, 3), (3, 5))]
    found = task.join([spans[0], SpanOutput(0, 0, [0, 1]), *spans[1:]], 3)
    (expected,) = task.join([SpanOutput(0, 0, None, whole)], 1)
    assert found == [("O", "B-x"), expected, ()]
