"""The CPU's step of bfloat16 models in one pass, against DeepSpeed's own."""

import pytest
import torch
from fangyan.data.packing import collate
from fangyan.data.tokenization import TokenizedSequence
from fangyan.device import device, on_gpu
from fangyan.models.packed import PackedModel
from fangyan.recipe import parse_recipe
from fangyan.tasks.token_classification.task import TokenClassification
from fangyan.training.distributed import start_distributed
from fangyan.training.engine import build_engine

pytestmark = pytest.mark.skipif(on_gpu(), reason="it is the CPU's step")

SEQUENCE = TokenizedSequence([33, 100, 200, 300, 36], [-100, 0, 1, 2, -100], 0)


def load(recipe):
    task = TokenClassification(["B-n", "I-n", "B-v", "I-v"], "segmentation")
    return recipe.model.load(task.auto_model, 0, task.model_kwargs())[0]


@pytest.mark.parametrize("clipping", [0.0, 0.01])
def test_use_one_pass_steps_as_deepspeed_does(clipping):
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
    batch = collate([SEQUENCE], 35).to(device())
    found = []
    for one_pass in (True, False):
        engine, optimizer = build_engine(recipe, PackedModel(load(recipe).eval(), "rows"), total_steps=10)
        assert "step" in vars(engine.optimizer)
        if not one_pass:
            del engine.optimizer.step
        engine.eval()
        for _ in range(3):
            engine.backward(engine(lambda model: model.loss(batch)))
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


def test_use_one_pass_resumes_from_deepspeeds_step_and_back(tmp_path):
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


def test_use_one_pass_steps_nothing_where_a_gradient_is_not_finite():
    start_distributed()
    content = {"name": "x", "data": {"format": "hkcancor"}, "engine": {"precision": "bf16"}}
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
