"""fp16 with a dynamic loss scale, on a processor that has it, and the choice of a precision by the card."""

import json

import pytest
import torch
from fangyan.adaptation.full import Full
from fangyan.distributed.process_group import start_distributed
from fangyan.errors import UserError
from fangyan.models.packaged.cantonese_qwen3 import read_cantonese_qwen3
from fangyan.recipe import load_recipe, parse_recipe
from fangyan.training import engine
from fangyan.training.checkpoint import Checkpoints
from fangyan.training.engine import check_precision, choose_precision
from fangyan.training.run_folder import RunFolder, Start
from fangyan.training.trainer import Trainer
from safetensors.torch import load_file
from transformers import Qwen3ForCausalLM

RECIPE = """
name: lm
task: {name: causal_lm}
data: {format: text, train: lm.txt, dev: lm.txt}
model: {path: narrow}
schedule: {warmup: 0.0}
train: {epochs: 2, batch_tokens: 64, log_every: 1, checkpoint_every: 2, keep_checkpoints: 9}
optimizer: {lr: 1.0e-3}
"""

needs_fp16 = pytest.mark.skipif(
    not torch.cuda.is_available() and not torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    reason="the processor has no float16",
)


class Overflowing(Full):
    """Full fine-tuning whose third step has a gradient beyond fp16."""

    def before_optimizer_step(self, model, step):
        if step == 2:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(float("inf"))


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """Train, or resume, and return the run's losses, learning rates, log and final loss scale."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lm.txt").write_text("我哋聽日去飲茶\n" * 3 + "今日天氣好好" * 40 + "\n", encoding="utf-8")
    (tmp_path / "lm.yaml").write_text(RECIPE, encoding="utf-8")
    packaged = read_cantonese_qwen3(pretrained=False)
    packaged.config.update({"hidden_size": 64, "intermediate_size": 128, "head_dim": 16})
    torch.manual_seed(0)
    Qwen3ForCausalLM(packaged.config).save_pretrained(tmp_path / "narrow")
    packaged.tokenizer.save_pretrained(tmp_path / "narrow")

    def run(*overrides, adaptation=None, checkpoint=None):
        start_distributed()
        recipe = load_recipe("lm.yaml", ["engine.precision=fp16", *overrides])
        if adaptation is not None:
            recipe = recipe.model_copy(update={"adaptation": adaptation})
        trainer = Trainer(recipe)
        trainer.start_engine()
        folder = RunFolder(tmp_path / "run", Checkpoints(tmp_path / "run" / "checkpoints", keep=9))
        trainer.fit(folder, Start(checkpoint and folder.path / "checkpoints" / checkpoint))
        scale = trainer.loss_scale
        trainer.engine.destroy()
        lines = (folder.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [record for record in map(json.loads, lines) if record["kind"] == "train"]
        log = (folder.path / "log.txt").read_text(encoding="utf-8")
        return [s["loss"] for s in steps], [s["lr"] for s in steps], log, scale

    return run


@needs_fp16
@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("engine.zero_stage=2", "optimizer.name=adamw8bit"),
        ("engine.zero_stage=3",),
        ("adaptation.name=lora", "adaptation.rank=4", "adaptation.quantization=nf4"),
    ],
)
def test_fp16_takes_the_steps_of_fp32(fit, overrides):
    """A gradient that kept its scale, or lost it twice, would differ by it: epsilon is no scale's."""
    losses = []
    for precision in ("fp16", "fp32"):
        start_distributed()
        options = (*overrides, "optimizer.eps=1e-4", f"engine.precision={precision}")
        trainer = Trainer(load_recipe("lm.yaml", list(options)))
        trainer.start_engine()
        if precision == "fp16":
            trainer.engine.optimizer.loss_scale = 1024.0
        batches = [batch for epoch in trainer.batches for batch in epoch]
        losses.append([trainer.train_step(batch, step).item() for step, batch in enumerate(batches)])
        assert trainer.engine.skipped_steps == 0
        trainer.engine.destroy()
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert losses[0][-1] < losses[0][0]


@needs_fp16
@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2])
def test_fp16_skips_a_step_that_overflows_and_says_so(fit, tmp_path, stage):
    # Of its real size: at ZeRO 2 it is its own gradients that are beyond fp16.
    options = (f"engine.zero_stage={stage}", "model.path=cantonese-qwen3", "model.pretrained=false")
    losses, rates, log, scale = fit(*options, adaptation=Overflowing())
    skipped = [
        int(line.split()[1]) for line in log.splitlines() if "is skipped, and the schedule waits" in line
    ]
    assert skipped
    assert 3 in skipped or stage == 2  # ZeRO has its gradients elsewhere by then
    assert scale < 65536
    # A rate is of the step, and moves on behind each that is not skipped.
    moves = [step for step in range(1, len(rates)) if rates[step] < rates[step - 1]]
    assert moves == [step for step in range(1, len(rates)) if step not in skipped]
    # A resumed run goes on with the same scale and the same delay.
    whole = load_file(tmp_path / "run" / "model" / "model.safetensors")
    resumed = fit(*options, adaptation=Overflowing(), checkpoint="step-000004")
    assert resumed[:2] == (losses, rates)
    assert resumed[3] == scale
    again = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
    assert all(tensor.dtype == torch.float16 for tensor in whole.values())


@pytest.mark.parametrize(
    ("gpu", "capability", "expected"),
    [(False, (0, 0), "fp32"), (True, (7, 0), "fp16"), (True, (7, 5), "fp16"), (True, (8, 0), "bf16")],
)
def test_choose_precision(monkeypatch, gpu, capability, expected):
    # Capabilities are cached by device.
    device = torch.device("cuda", 200 + 10 * capability[0] + capability[1]) if gpu else torch.device("cpu")
    monkeypatch.setattr(engine, "device", lambda: device)
    monkeypatch.setattr(engine, "on_gpu", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    recipe = parse_recipe({"name": "x", "data": {"format": "hkcancor"}, "engine": {"precision": "auto"}})
    assert choose_precision(recipe).engine.precision == expected


def test_check_precision_of_fp16_on_a_processor_without_it(monkeypatch):
    recipe = parse_recipe({"name": "x", "data": {"format": "hkcancor"}, "engine": {"precision": "fp16"}})
    monkeypatch.setattr(engine, "on_gpu", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    with pytest.raises(
        UserError, match="engine.precision is fp16, which this processor does not have; expected fp32"
    ):
        check_precision(recipe.engine)


def test_adalora_in_fp16():
    content = {"name": "x", "data": {"format": "hkcancor"}, "engine": {"precision": "fp16"}}
    message = "engine.precision is fp16, which scales the gradients that adalora reads; expected bf16"
    with pytest.raises(UserError, match=message):
        parse_recipe(content | {"adaptation": {"name": "adalora"}})
