"""Parameter groups, and 32-bit states that ZeRO would lose: in one process, at every stage."""

import gc

import bitsandbytes as bnb
import pytest
import torch
from fangyan.data.encode import Window
from fangyan.data.packing import collate
from fangyan.engine import build_engine, device, start_distributed
from fangyan.errors import UserError
from fangyan.models import load_token_classifier
from fangyan.models.packed import PackedModel
from fangyan.optimizer import check_states, flat_parameters, parameter_groups
from fangyan.recipe import Model, Optimizer, parse_recipe

LABELS = ["B-n", "I-n", "B-v", "I-v"]


def test_groups():
    model, _ = load_token_classifier(Model(), LABELS, seed=0)
    groups = {group["name"]: group for group in parameter_groups(model, Optimizer(weight_decay=0.1))}
    assert {name: group["weight_decay"] for name, group in groups.items()} == {
        "matrices": 0.1, "embeddings": 0.1, "vectors": 0.0,
    }  # fmt: skip
    assert all(p.ndim == 1 for p in groups["vectors"]["params"])
    assert all(p.ndim == 2 for p in groups["matrices"]["params"])
    assert len(groups["embeddings"]["params"]) == 3
    assert sum(len(group["params"]) for group in groups.values()) == len(list(model.parameters()))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(UserError, match="every parameter is frozen"):
        parameter_groups(model, Optimizer())


def test_layer_decay_lowers_the_rate_from_the_head_to_the_embeddings():
    model, _ = load_token_classifier(Model(), LABELS, seed=0)
    groups = parameter_groups(model, Optimizer(lr=1.0, layer_decay=0.5))
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
        parameter_groups(torch.nn.Linear(2, 2), Optimizer(layer_decay=0.5))


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
def test_norms_biases_and_embeddings_keep_32_bit_states(name, stage, precision, offload):
    start_distributed()
    recipe = parse_recipe(
        {
            "name": "x",
            "data": {"format": "hkcancor"},
            "optimizer": {"name": name, "layer_decay": 0.9},
            "engine": {"zero_stage": stage, "precision": precision, "offload": offload},
        }
    )
    model, _ = load_token_classifier(recipe.model, LABELS, seed=0)
    packed = PackedModel(model, len(LABELS), "rows")
    engine, optimizer = build_engine(recipe, packed, total_steps=10)
    window = Window([33, 100, 200, 300, 36], [1, 2, 3], 0, (0, 3), [-100, 0, 1, 2, -100])
    losses = []
    for _ in range(2):
        loss = engine(collate([window], 35).to(device()))
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    check_states(engine, optimizer)
    kinds = {}
    for group, parameter in flat_parameters(engine, optimizer):
        state = optimizer.state[parameter]
        kinds.setdefault(group, set()).add(state["state1"].dtype)
        assert state["step"] == 2
        if device().type == "cpu" or offload == "optimizer":
            assert type(optimizer).__module__ == "fangyan_kernels.optim8bit"
            assert parameter.device.type == "cpu"
    assert kinds["vectors"] == kinds["embeddings"] == {torch.float32}
    # Without ZeRO bitsandbytes sees single tensors, and keeps small ones (the head) in 32 bits.
    assert torch.uint8 in kinds["matrices"]
    engine.destroy()
    del engine, optimizer, parameter, state, loss
    gc.collect()
    alive = {id(thing) for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)}
    assert bnb.optim.GlobalOptimManager.get_instance().pid2config.keys() <= alive


@pytest.mark.skipif(device().type != "cpu", reason="it is the CPU's step")
@pytest.mark.parametrize("clipping", [0.0, 0.01])
def test_bf16_steps_in_one_pass_as_deepspeed_does(clipping):
    start_distributed()
    recipe = parse_recipe(
        {
            "name": "x",
            "data": {"format": "hkcancor"},
            "optimizer": {"weight_decay": 0.1},
            "train": {"gradient_clipping": clipping},
            "engine": {"precision": "bf16"},
        }
    )
    window = Window([33, 100, 200, 300, 36], [1, 2, 3], 0, (0, 3), [-100, 0, 1, 2, -100])
    found = []
    for one_pass in (True, False):
        model, _ = load_token_classifier(recipe.model, LABELS, seed=0)
        engine, optimizer = build_engine(
            recipe, PackedModel(model.eval(), len(LABELS), "rows"), total_steps=10
        )
        assert "step" in vars(engine.optimizer)
        if not one_pass:
            del engine.optimizer.step
        engine.eval()
        for _ in range(3):
            engine.backward(engine(collate([window], 35).to(device())))
            engine.step()
        masters = [master for group in engine.optimizer.fp32_groups for master in group]
        states = [tensor for master in masters for tensor in optimizer.state[master].values()]
        weights = [weight for group in engine.optimizer.fp16_groups for weight in group]
        for master, weight in zip(masters, weights, strict=True):
            assert torch.equal(master.bfloat16(), weight)
        found.append((engine.optimizer._global_grad_norm, [*masters, *states]))
        engine.destroy()
    assert found[0][0] == pytest.approx(float(found[1][0]), rel=1e-4)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-6)


@pytest.mark.skipif(device().type != "cpu", reason="it is the CPU's step")
def test_bf16_goes_on_from_deepspeeds_own_step_and_back(tmp_path):
    """Runs saved before there was a step in one pass go on with it, and the other way round."""
    start_distributed()
    content = {"name": "x", "data": {"format": "hkcancor"}, "engine": {"precision": "bf16"}}
    content["schedule"] = {"warmup": 0.0}
    recipe = parse_recipe(content)
    model, _ = load_token_classifier(recipe.model, LABELS, seed=0)
    engine, optimizer = build_engine(recipe, PackedModel(model, len(LABELS), "rows"), total_steps=10)
    window = Window([33, 100, 200, 300, 36], [1, 2, 3], 0, (0, 3), [-100, 0, 1, 2, -100])
    batch = collate([window], 35).to(device())
    one_pass = engine.optimizer.step
    engine.eval()

    def step_and_loss():
        engine.backward(engine(batch))
        engine.step()
        with torch.no_grad():
            return engine(batch).item()

    step_and_loss()
    engine.save_checkpoint(str(tmp_path), tag="one pass", save_latest=False)
    whole = [step_and_loss() for _ in range(2)]
    del engine.optimizer.step
    engine.load_checkpoint(str(tmp_path), tag="one pass")
    mixed = [step_and_loss()]
    engine.save_checkpoint(str(tmp_path), tag="DeepSpeed's", save_latest=False)
    step_and_loss()  # away from what is loaded
    engine.optimizer.step = one_pass
    engine.load_checkpoint(str(tmp_path), tag="DeepSpeed's")
    mixed.append(step_and_loss())
    assert {int(state["step"]) for state in optimizer.state.values()} == {3}
    assert whole[1] < 0.9 * whole[0]
    assert mixed == pytest.approx(whole, rel=5e-3)
    engine.destroy()


@pytest.mark.skipif(device().type != "cpu", reason="it is the CPU's step")
def test_bf16_leaves_weights_where_gradients_are_not_finite():
    start_distributed()
    content = {"name": "x", "data": {"format": "hkcancor"}, "engine": {"precision": "bf16"}}
    model, _ = load_token_classifier(Model(), LABELS, seed=0)
    engine, optimizer = build_engine(parse_recipe(content), PackedModel(model, len(LABELS), "rows"), 10)
    weights = [weight for group in engine.optimizer.fp16_groups for weight in group]
    before = [weight.detach().clone() for weight in weights]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    weights[3].grad[0] = float("inf")
    assert engine.optimizer.step()
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
    assert not optimizer.state
    engine.destroy()


def test_what_has_nothing_to_offload_is_refused():
    content = {"name": "x", "data": {"format": "hkcancor"}, "engine": {"offload": "optimizer"}}
    with pytest.raises(UserError, match="engine.zero_stage is 0, which offloads nothing; expected 1, 2 or 3"):
        parse_recipe(content)
