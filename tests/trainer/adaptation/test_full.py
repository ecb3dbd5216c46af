"""Full fine-tuning: what is frozen, by type and by layer."""

import pytest
import torch
from fangyan.adaptation.full import Full, parse_layers
from fangyan.errors import UserError
from fangyan.models.loading import ModelConfig
from fangyan.tasks.token_classification.task import TokenClassification


@pytest.fixture
def model():
    task = TokenClassification(["B-n", "I-n"], "segmentation")
    return ModelConfig().load(task.auto_model, 0, task.model_kwargs())[0]


def apply(model, **settings):
    """Apply Full to a model, and return the names of what is frozen."""
    adapted = Full(**settings).apply(
        model,
        peft_task_type="TOKEN_CLS",
        new_head="classifier",
        total_steps=10,
        activation_dtype=torch.float32,
        kernels="auto",
    )
    assert adapted is model
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def test_apply_freezes_embeddings_and_layers(model):
    assert not apply(model)
    names = apply(model, freeze_embeddings=True, freeze_layers="0-3")
    assert any("word_embeddings" in name for name in names)
    assert {name.split(".")[3] for name in names if "encoder.layer" in name} == set("0123")
    assert not any("classifier" in name or "embeddings_project" in name for name in names)


def test_apply_freezes_layers_alone(model):
    names = apply(model, freeze_layers="1,4")
    assert {name.split(".")[3] for name in names} == set("14")
    layers = model.electra.encoder.layer
    assert len(names) == sum(len(list(layers[i].parameters())) for i in (1, 4))


def test_apply_to_a_layer_that_the_model_has_not(model):
    with pytest.raises(UserError, match="adaptation.freeze_layers: layer 6, but the model has layers 0-5"):
        apply(model, freeze_layers=6)


def test_parse_layers():
    assert parse_layers(3) == [range(3, 4)]
    assert parse_layers("0-3") == [range(4)]
    assert parse_layers("0, 2,5-6") == [range(1), range(2, 3), range(5, 7)]
