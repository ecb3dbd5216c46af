"""Class weights: the loss of a step is PyTorch's weighted mean, however it is divided into micro-batches."""

import pytest
import torch
import torch.nn.functional as F
from fangyan.data.batching import micro_batches
from fangyan.data.example import Example
from fangyan.data.packing import collate
from fangyan.errors import UserError
from fangyan.recipe import load_recipe
from fangyan.tasks.token_classification.config import TokenClassificationConfig
from fangyan.training.workload import Workload

RECIPE = """
name: weighted
data: {format: conll, train: train.conll, dev: train.conll}
model: {path: cantonese-electra, pretrained: false, hidden_dropout: 0.0}
train: {epochs: 1, batch_tokens: 256}
"""


def sentences(*tags):
    return [Example({"tokens": tuple("字" * len(line)), "tags": tuple(line)}, "x:1", "g") for line in tags]


@pytest.fixture
def workload(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "我\tO\n住\tO\n喺\tO\n香\tB-LOC\n港\tI-LOC\n\n佢\tB-PER\n去\tO\n\n" * 4
    (tmp_path / "train.conll").write_text(text, encoding="utf-8")
    (tmp_path / "weighted.yaml").write_text(RECIPE, encoding="utf-8")
    return lambda *overrides: Workload(load_recipe("weighted.yaml", list(overrides)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", ["balanced", "{O: 0.25, B-LOC: 3}"])
def test_loss_of_micro_batches_is_the_weighted_mean(workload, weights, smoothing):
    """Of value and gradient, by torch's own cross-entropy of all logits together."""
    loaded = workload(f"task.class_weights={weights}", f"objective.label_smoothing={smoothing}")
    model, objective = loaded.model.eval(), loaded.recipe.objective
    (step,) = loaded.batches[0]
    divisor = loaded.total_weight(step)
    losses = [
        objective.loss(model, loaded.micro_batch(members, "0"), divisor)
        for members in micro_batches(step, loaded.lengths, 3)
    ]
    found = torch.stack(losses).sum()
    (gradient,) = torch.autograd.grad(found, [model.head.weight])

    batch = collate([loaded.sequences[i] for i in step], loaded.tokenizer.pad_id, model.row_width)
    expected = F.cross_entropy(
        model.logits(batch).flatten(0, 1),
        batch.labels.flatten(),
        weight=torch.tensor(loaded.task.class_weights),
        label_smoothing=smoothing,
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, [model.head.weight])[0])


def test_evaluation_is_not_weighted(workload):
    plain, weighted = (workload(*more).model.eval() for more in ((), ("task.class_weights=balanced",)))
    loaded = workload()
    batch = collate(loaded.sequences[:4], loaded.tokenizer.pad_id, plain.row_width)
    assert plain.loss(batch).item() == weighted.loss(batch).item()


def test_balanced_weights_give_all_labels_the_same_total():
    train = sentences(["O", "O", "B-x"], ["O", "O", "O", "B-y", "I-y"])
    task = TokenClassificationConfig().fit({"train": train})
    weights = TokenClassificationConfig(class_weights="balanced").weights(task, train)
    of_label = dict(zip(task.labels, weights, strict=True))
    assert of_label == {"O": 0.4, "B-x": 2.0, "I-x": 1.0, "B-y": 2.0, "I-y": 2.0}


def test_class_weights_of_a_label_that_is_none(workload):
    with pytest.raises(
        UserError, match=r"task.class_weights: 'LOC' is not in the tag set of 5, expected some of O"
    ):
        workload("task.class_weights={LOC: 2}")
    with pytest.raises(UserError, match=r"task.class_weights.O: input should be greater than 0, found -1"):
        workload("task.class_weights={O: -1}")


@pytest.mark.slow
@pytest.mark.ranks
def test_class_weights_on_two_ranks_are_those_of_one(cli):
    """One rank with two micro-batches has what two ranks have one of each."""
    weighted = ("task.class_weights=balanced", "train.epochs=1", "engine.zero_stage=1")
    cli.train(*weighted, "train.gradient_accumulation_steps=2", run="one")
    cli.train(*weighted, run="two", ranks=2)
    one, two = ([loss for _, loss in cli.losses(run)] for run in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-5)
