"""The steps of models in 16 bits, in one pass and by lists of tensors, against DeepSpeed's own."""

import pytest
import torch
from fangyan.data.packing import collate
from fangyan.data.tokenization import TokenizedSequence
from fangyan.device import device
from fangyan.distributed.process_group import start_distributed
from fangyan.models.packed import PackedModel
from fangyan.recipe import parse_recipe
from fangyan.tasks.token_classification.task import TokenClassification
from fangyan.training.engine import backward, build_engine

FP16 = pytest.mark.skipif(
    device().type == "cpu" and not torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    reason="this processor has no fp16",
)

SEQUENCE = TokenizedSequence([33, 100, 200, 300, 36], [-100, 0, 1, 2, -100], 0)


def load(recipe):
    task = TokenClassification(["B-n", "I-n", "B-v", "I-v"], "segmentation")
    return recipe.model.load(task.auto_model, 0, task.model_kwargs())[0]


@pytest.mark.parametrize(
    ("optimizer_name", "precision", "clipping"),
    [
        ("adamw", "bf16", 0.0),
        ("adamw", "bf16", 0.01),
        ("adamw8bit", "bf16", 0.0),
        ("sgd", "bf16", 0.0),
        pytest.param("sgd", "fp16", 0.01, marks=FP16),
    ],
)
def test_replaced_step_steps_as_deepspeed_does(clipping, optimizer_name, precision):
    start_distributed()
    recipe = parse_recipe(
        {
            "name": "x",
            "data": {"format": "hkcancor"},
            "optimizer": {"name": optimizer_name, "weight_decay": 0.1},
            "train": {"gradient_clipping": clipping},
            "engine": {"precision": precision},
        }
    )
    batch = collate([SEQUENCE], 35).to(device())
    found = []
    for one_pass in (True, False):
        engine, optimizer = build_engine(recipe, PackedModel(load(recipe).eval(), "rows"), total_steps=10)
        assert "step" in vars(engine.optimizer)
        if not one_pass:
            del engine.optimizer.step
        engine.eval()
        for _ in range(3):
            backward(engine, engine(lambda model: model.loss(batch)))
            engine.step()
        masters = [master for group in engine.optimizer.fp32_groups for master in group]
        values = [value for master in masters for value in optimizer.state[master].values()]
        states = [value for value in values if isinstance(value, torch.Tensor)]
        weights = [weight for group in engine.optimizer.fp16_groups for weight in group]
        for master, weight in zip(masters, weights, strict=True):
            assert torch.equal(master.to(weight.dtype), weight)
        found.append((engine.optimizer._global_grad_norm, [*masters, *states]))
        engine.destroy()
    assert found[0][0] == pytest.approx(float(found[1][0]), rel=1e-4)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        if one.dtype == torch.uint8:  # a rounding moves a code to the next at most
            torch.testing.assert_close(one.int(), other.int(), rtol=0.0, atol=1)
        else:
            torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-6)


def test_replaced_step_resumes_from_deepspeeds_step_and_back(tmp_path):
    """Checkpoints of either step are resumed by the other."""
    start_distributed()
    content = {"name": "x", "data": {"format": "hkcancor"}, "engine": {"precision": "bf16"}}
    content["schedule"] = {"warmup": 0.0}
    recipe = parse_recipe(content)
    engine, optimizer = build_engine(recipe, PackedModel(load(recipe), "rows"), total_steps=10)
    batch = collate([SEQUENCE], 35).to(device())
    one_pass = engine.optimizer.step
    engine.eval()

    def step_and_loss():
        engine.backward(engine(lambda model: model.loss(batch)))
        engine.step()
        with torch.no_grad():
            return engine(lambda model: model.loss(batch)).item()

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


@pytest.mark.parametrize("optimizer_name", ["adamw", "sgd"])
def test_replaced_step_steps_nothing_where_a_gradient_is_not_finite(optimizer_name):
    start_distributed()
    content = {"name": "x", "data": {"format": "hkcancor"}, "engine": {"precision": "bf16"}}
    content["optimizer"] = {"name": optimizer_name}
    recipe = parse_recipe(content)
    engine, optimizer = build_engine(recipe, PackedModel(load(recipe), "rows"), 10)
    weights = [weight for group in engine.optimizer.fp16_groups for weight in group]
    before = [weight.detach().clone() for weight in weights]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    weights[3].grad[0] = float("inf")
    assert engine.optimizer.step()
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
    assert not optimizer.state
    engine.destroy()


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_step_by_lists_divides_by_the_loss_scale_of_its_gradients(scale):
    """DeepSpeed divides by the next one, which is twice as large when it grows."""
    start_distributed()
    content = {"name": "x", "data": {"format": "hkcancor"}, "engine": {"precision": "bf16"}}
    recipe = parse_recipe(content | {"optimizer": {"name": "sgd", "weight_decay": 0.0}})
    engine, optimizer = build_engine(recipe, PackedModel(load(recipe), "rows"), 10)
    wrapper = engine.optimizer
    wrapper.loss_scale_config.cur_scale, wrapper.loss_scale_config.dynamic_loss_scale = scale, True
    wrapper.loss_scale_config.scale_window, wrapper.loss_scale_config.scale_factor = 1, 2.0
    wrapper.loss_scale_config.cur_iter, wrapper.loss_scale_config.last_overflow_iter = 10, -1
    before = [master.clone() for group in wrapper.fp32_groups for master in group]
    for weight in (weight for group in wrapper.fp16_groups for weight in group):
        weight.grad = torch.full_like(weight, scale)
    wrapper.clip_grad = 0.0
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    assert not wrapper.step()
    assert wrapper.loss_scale_config.cur_scale == 2 * scale
    for master, old in zip((m for group in wrapper.fp32_groups for m in group), before, strict=True):
        torch.testing.assert_close(master.detach(), old - 0.5, rtol=1e-6, atol=1e-6)
    engine.destroy()
