"""Importance of weights is that of the squared gradients of drawn labels, at every ZeRO stage."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from adapted_models import SMALL
from fangyan.data.batching import Batches
from fangyan.data.packing import collate
from fangyan.data.tokenization import IGNORE_INDEX, TokenizedSequence
from fangyan.distributed.process_group import start_distributed
from fangyan.errors import UserError
from fangyan.models.packed import PackedModel
from fangyan.objectives.fisher import fisher_information
from fangyan.objectives.objective import Run
from fangyan.objectives.sampling import sample_labels
from fangyan.optimizers.adamw import AdamW
from fangyan.optimizers.param_groups import parameter_groups
from fangyan.optimizers.states import flat_groups
from fangyan.recipe import parse_recipe
from fangyan.training.engine import backward, build_engine, release
from transformers import AutoModelForTokenClassification, BertConfig

pytestmark = pytest.mark.slow

SEED = 3


class Pad:
    """What is needed of a tokenizer."""

    pad_id = 0


def make_model(seed=0):
    torch.manual_seed(seed)
    model = AutoModelForTokenClassification.from_config(
        BertConfig(**SMALL, num_labels=5), dtype=torch.float32
    )
    return PackedModel(model, "rows")


def make_sequences():
    random = np.random.default_rng(0)
    found = []
    for i in range(130):
        ids = random.integers(1, 60, random.integers(2, 9)).tolist()
        found.append(TokenizedSequence(ids, [0, *[IGNORE_INDEX, 1] * 9][: len(ids)], i))
    return found


def start(stage):
    start_distributed()
    recipe = parse_recipe(
        {
            "name": "fisher",
            "data": {"format": "conll", "train": "no-such.conll"},
            "engine": {"zero_stage": stage},
            "train": {"gradient_accumulation_steps": 2, "gradient_clipping": 1e-6},
            "objective": {"name": "l2sp"},
        }
    )
    model = make_model()
    built, optimizer = build_engine(recipe, model, 10, new={id(p) for p in model.head.parameters()})
    return Run(
        engine=built,
        optimizer=optimizer,
        model=model,
        task=None,
        tokenizer=Pad(),
        sequences=None,
        longest=100,
        batch_tokens=100,
        seed=SEED,
        epochs=1,
        accumulation=2,
        backward=partial(backward, built),
        kept=None,
        leaders=[0],
    )


def by_autograd(run, sequences):
    """The mean square of the gradients of batches, by parameter, in float64, without DeepSpeed."""
    model = make_model().double().eval()
    lengths = np.array([len(sequence.input_ids) for sequence in sequences])
    drawn = sample_labels(run.engine, run.model, sequences, lengths, 0, 1, SEED)
    labelled = drawn.mixed(sequences, range(len(sequences)), 1.0, SEED, "fisher")
    order = np.random.default_rng(SEED).permutation(len(sequences))
    sums = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    batches = Batches(order, lengths, lengths.sum() // 100)
    assert 1 < len(batches) < len(sequences)
    for members in batches:
        model.zero_grad()
        batch = collate([labelled[i] for i in members], 0, model.row_width)
        torch.nn.functional.cross_entropy(
            model.logits(batch).flatten(0, 1), batch.labels.flatten(), reduction="sum"
        ).backward()
        for name, parameter in model.named_parameters():
            sums[name] += parameter.grad**2
    return sums


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_fisher_information_is_that_of_autograd(stage):
    """And weights, states and counters are as before."""
    run, sequences = start(stage), make_sequences()
    wanted = by_autograd(run, sequences)
    before = [vector.clone() for _, vector in flat_groups(run.engine, run.optimizer)]
    found = fisher_information(run, sequences)
    after = [vector for _, vector in flat_groups(run.engine, run.optimizer)]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert (run.engine.global_steps, run.engine.micro_steps, run.engine.skipped_steps) == (0, 0, 0)
    expected = [torch.cat([wanted[name].flatten() for name in group]) for group in held_names(run.model)]
    if stage == 0:
        found = list(torch.cat([own.flatten() for own in found]).split([len(group) for group in expected]))
    # Zeros at a vector's end, so that those of all ranks are of one size.
    values = torch.cat([own[: len(group)] for own, group in zip(found, expected, strict=True)]).double()
    truth = torch.cat(expected)
    torch.testing.assert_close(values / values.mean(), truth / truth.mean(), rtol=2**-6, atol=1e-6)
    release(run.engine)


def held_names(model):
    """The parameters of each of the optimizer's groups, in order, less those of the new head."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, AdamW(), {id(parameter) for parameter in model.head.parameters()})
    return [[names[id(p)] for p in group["params"]] for group in groups if not group["is_new"]]


def test_no_batch_is_larger_than_a_steps(monkeypatch):
    """However many sequences are looked at: there is memory for a step."""
    run, sequences = replace(start(0), batch_tokens=12), make_sequences()
    monkeypatch.setattr("fangyan.objectives.fisher._BATCHES", 2)
    found = []
    monkeypatch.setattr("fangyan.objectives.fisher._backward", lambda _, members: found.append(members))
    with pytest.raises(UserError):  # no gradient came of them
        fisher_information(run, sequences)
    assert sum(map(len, found)) == len(sequences)
    assert max(sum(len(sequence.input_ids) for sequence in members) for members in found) <= 12


def test_fisher_information_of_gradients_that_are_zero():
    """A head of zeros passes none on."""
    run = start(0)
    torch.nn.init.zeros_(run.model.head.weight)
    with pytest.raises(UserError, match="objective.data: its gradients are zero or not finite"):
        fisher_information(run, make_sequences())
