"""32-bit states that ZeRO would lose: in one process, at every stage."""

import gc

import bitsandbytes as bnb
import pytest
import torch
from fangyan.data.packing import collate
from fangyan.data.tokenization import TokenizedSequence
from fangyan.device import device, on_gpu
from fangyan.distributed.process_group import start_distributed
from fangyan.models.packed import PackedModel
from fangyan.optimizers.param_groups import FULL_PRECISION_GROUPS
from fangyan.optimizers.states import assert_full_precision_states, flat_parameters
from fangyan.recipe import parse_recipe
from fangyan.tasks.token_classification.task import TokenClassification
from fangyan.training.engine import build_engine

SEQUENCE = TokenizedSequence([33, 100, 200, 300, 36], [-100, 0, 1, 2, -100], 0)


def load(recipe):
    task = TokenClassification(["B-n", "I-n", "B-v", "I-v"], "segmentation")
    return recipe.model.load(task.auto_model, 0, task.model_kwargs())[0]


EVERY_STAGE = [
    ("adamw8bit", stage, precision, "none") for stage in range(4) for precision in ("fp32", "bf16")
]
OFFLOADED = [("adamw8bit", stage, "bf16", "optimizer") for stage in (1, 2, 3)]
OTHERS = [
    ("lion8bit", 0, "fp32", "none"),
    ("lion8bit", 3, "bf16", "optimizer"),
    ("ademamix8bit", 0, "bf16", "none"),
    ("ademamix8bit", 2, "fp32", "optimizer"),
    ("paged_adamw8bit", 1, "fp32", "none"),
]


@pytest.mark.parametrize(("name", "stage", "precision", "offload"), EVERY_STAGE + OFFLOADED + OTHERS)
@pytest.mark.slow
def test_assert_full_precision_states_after_steps(name, stage, precision, offload):
    start_distributed()
    recipe = parse_recipe(
        {
            "name": "x",
            "data": {"format": "hkcancor"},
            "optimizer": {"name": name, "layer_decay": 0.9},
            "engine": {"zero_stage": stage, "precision": precision, "offload": offload},
        }
    )
    packed = PackedModel(load(recipe), "rows")
    engine, optimizer = build_engine(recipe, packed, total_steps=10)
    losses = []
    for _ in range(2):
        batch = collate([SEQUENCE], 35).to(device())
        loss = engine(lambda model, batch=batch: model.loss(batch))
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert_full_precision_states(engine, optimizer, recipe.optimizer)
    kinds = {}
    for group, parameter in flat_parameters(engine, optimizer):
        state = optimizer.state[parameter]
        kinds.setdefault(group, set()).add(state["state1"].dtype)
        assert state["step"] == 2
        if not on_gpu() or offload == "optimizer":
            assert type(optimizer).__module__ == "fangyan_kernels.optim8bit"
            assert parameter.device.type == "cpu"
    assert kinds["no_decay"] == kinds["embeddings"] == {torch.float32}
    # Without ZeRO bitsandbytes sees single tensors, and keeps small ones (the head) in 32 bits.
    assert torch.uint8 in kinds["decay"]
    lost = next(
        flat
        for group, flat in flat_parameters(engine, optimizer)
        if group in FULL_PRECISION_GROUPS and flat.numel()
    )
    optimizer.state[lost]["state1"] = optimizer.state[lost]["state1"].to(torch.uint8)
    with pytest.raises(RuntimeError, match="states are torch.uint8, expected torch.float32"):
        assert_full_precision_states(engine, optimizer, recipe.optimizer)
    engine.destroy()
    del engine, optimizer, parameter, state, loss, lost
    gc.collect()
    alive = {id(thing) for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)}
    assert bnb.optim.GlobalOptimManager.get_instance().pid2config.keys() <= alive
