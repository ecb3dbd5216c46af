"""Parameter groups: what decays, and the learning rate of each layer."""

import pytest
import torch
from fangyan.errors import UserError
from fangyan.models.loading import ModelConfig
from fangyan.optimizers import OPTIMIZERS
from fangyan.optimizers.adamw import AdamW
from fangyan.optimizers.param_groups import FULL_PRECISION_GROUPS, parameter_groups
from fangyan.tasks.token_classification.task import TokenClassification


@pytest.fixture
def model():
    task = TokenClassification(["B-n", "I-n", "B-v", "I-v"], "segmentation")
    return ModelConfig().load(task.auto_model, 0, task.model_kwargs())[0]


def test_parameter_groups(model):
    groups = {group["name"]: group for group in parameter_groups(model, AdamW(weight_decay=0.1))}
    assert {name: group["weight_decay"] for name, group in groups.items()} == {
        "decay": 0.1, "embeddings": 0.1, "no_decay": 0.0,
    }  # fmt: skip
    assert all(p.ndim == 1 for p in groups["no_decay"]["params"])
    assert all(p.ndim == 2 for p in groups["decay"]["params"])
    assert len(groups["embeddings"]["params"]) == 3
    assert sum(len(group["params"]) for group in groups.values()) == len(list(model.parameters()))
    assert set(FULL_PRECISION_GROUPS) == groups.keys() - {"decay"}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(UserError, match="adaptation: every parameter is frozen"):
        parameter_groups(model, AdamW())


def test_parameter_groups_with_layer_decay(model):
    groups = parameter_groups(model, AdamW(lr=1.0, layer_decay=0.5))
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        if name.startswith("classifier"):
            depth = 0
        elif ".layer." in name:
            depth = 6 - int(name.split(".")[3])
        else:
            depth = 7  # the embeddings, their norm and their projection
        assert rates[id(parameter)] == 0.5**depth, name
    with pytest.raises(UserError, match="optimizer.layer_decay: Linear has no stack of layers"):
        parameter_groups(torch.nn.Linear(2, 2), AdamW(layer_decay=0.5))


@pytest.mark.parametrize("name", OPTIMIZERS.members)
def test_build_of_every_optimizer_steps(name):
    """On the CPU, with its states as large as the memory estimate counts them."""
    weight = torch.nn.Parameter(torch.linspace(-1.0, 1.0, 8192).view(64, 128))
    config = OPTIMIZERS.members[name]()
    groups = [{"name": "decay", "params": [weight], "lr": config.lr, "weight_decay": config.weight_decay}]
    optimizer = config.build(groups, total_steps=10, on_cpu=True)
    before = weight.detach().clone()
    weight.grad = before.clone()
    optimizer.step()
    assert ((weight - before)[before > 0.1] < 0).all()
    whole = [s for s in optimizer.state[weight].values() if torch.is_tensor(s) and s.numel() >= 8192]
    assert sum(state.numel() for state in whole) == config.states_per_parameter * 8192
    assert {state.element_size() for state in whole} == {1 if config.has_8bit_states else 4}
