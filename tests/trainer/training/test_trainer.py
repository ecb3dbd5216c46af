"""The trainer in one process: how it cuts documents, what it counts, evaluates and says."""

import json

import pytest
import torch
from fangyan.adaptation.full import Full
from fangyan.data.packing import collate
from fangyan.device import device
from fangyan.distributed.process_group import start_distributed
from fangyan.recipe import load_recipe
from fangyan.training.checkpoint import Checkpoints
from fangyan.training.run_folder import RunFolder, Start
from fangyan.training.trainer import Trainer

LANGUAGE_MODEL = """
name: lm
task: {name: causal_lm}
data: {format: text, train: lm.txt, dev: lm.txt}
model: {path: cantonese-qwen3, pretrained: false}
train: {epochs: 1, batch_tokens: 64}
"""
LORA = ("adaptation.name=lora", "adaptation.rank=4")


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe of a language model, with overrides."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lm.txt").write_text("我哋聽日去飲茶\n" * 3 + "今日天氣好好" * 40 + "\n", encoding="utf-8")
    (tmp_path / "lm.yaml").write_text(LANGUAGE_MODEL, encoding="utf-8")
    return lambda *overrides: load_recipe("lm.yaml", list(overrides))


@pytest.mark.parametrize("batch_tokens", [64, 20, 1])
def test_trainer_cuts_documents_to_batch_tokens(recipe, batch_tokens):
    """Nothing of them is lost, and a step holds no more; 8 sub-words are the least."""
    trainer = Trainer(recipe(f"train.batch_tokens={batch_tokens}"))
    longest = max(batch_tokens, 8)
    assert max(trainer.lengths) == longest
    assert sum(trainer.num_valid) == 3 * 8 + 241
    (batches,) = trainer.batches
    assert all(sum(trainer.lengths[i] for i in batch) <= longest for batch in batches)
    # Evaluation has the model's own length, whatever a step is.
    assert trainer.max_length == 512


def test_trainer_cuts_sentences_of_a_tagger_to_batch_tokens(tmp_path):
    (tmp_path / "long.conll").write_text("字\tB-n\n" * 100, encoding="utf-8")
    data = ["data.format=conll", f"data.train={tmp_path}/long.conll", f"data.dev={tmp_path}/long.conll"]
    trainer = Trainer(load_recipe("cantonese-pos", [*data, "data.test=null", "train.batch_tokens=32"]))
    assert max(trainer.lengths) == 32
    assert sum(trainer.num_valid) == 100


def test_trainer_counts_nf4_weights_as_parameters(recipe):
    """Two of them are in a byte."""
    plain, packed = (Trainer(recipe(*LORA, *more)) for more in ((), ("adaptation.quantization=nf4",)))
    frozen = [p for p in plain.model.parameters() if not p.requires_grad]
    assert packed.num_frozen == plain.num_frozen == sum(p.numel() for p in frozen)
    assert sum(p.numel() for p in packed.model.parameters() if not p.requires_grad) < plain.num_frozen


@pytest.mark.slow
def test_evaluate_has_no_label_smoothing(recipe):
    """The same weights have the same perplexity, whatever they are trained by."""
    start_distributed()
    found, losses = [], []
    for smoothing in (0.0, 0.3):
        trainer = Trainer(recipe(f"objective.label_smoothing={smoothing}", "engine.kernels=reference"))
        trainer.start_engine()
        before = trainer.evaluate("dev")
        batch = collate(trainer.sequences[:2], trainer.tokenizer.pad_id, trainer.model.row_width)
        with torch.no_grad():
            loss = trainer.recipe.objective.loss(trainer.model.eval(), batch.to(device()), 1.0)
        losses.append(loss.item())
        # Uniform logits, but for the one that is right: smoothing would count against it.
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.mul_(3.0)
        found.append([before, trainer.evaluate("dev")])
        trainer.engine.destroy()
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]
    assert abs(losses[0] - losses[1]) > 1e-2


class Poisoned(Full):
    """Full fine-tuning with one gradient that is not finite, in the second step."""

    def before_optimizer_step(self, model, step):
        if step == 1:
            next(p for p in model.parameters() if p.ndim == 2).grad[0, 0] = float("nan")


@pytest.mark.slow
def test_fit_says_skipped_parameters_once(recipe, tmp_path):
    """Of an 8-bit optimizer, which leaves a parameter as it is where its gradient is not finite."""
    start_distributed()
    options = ("optimizer.name=adamw8bit", "train.gradient_clipping=0.0", "train.log_every=1")
    chosen = recipe(*options, "schedule.warmup=0.0").model_copy(update={"adaptation": Poisoned()})
    trainer = Trainer(chosen)
    trainer.start_engine()
    folder = RunFolder(tmp_path / "run", Checkpoints(tmp_path / "run" / "checkpoints", keep=1))
    result = trainer.fit(folder, Start())
    trainer.engine.destroy()
    assert result.steps > 3
    log = (folder.path / "log.txt").read_text(encoding="utf-8").splitlines()
    said = [line for line in log if line.startswith("step ")]
    assert said == ["step 2: elements skipped, whose gradient is not finite: 1"]
    lines = (folder.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [record["step"] for record in map(json.loads, lines) if record["kind"] == "train"]
    assert steps == list(range(1, result.steps + 1))
