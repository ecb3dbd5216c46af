"""Two real ranks: the same losses and the same model as one, at every ZeRO stage."""

import json
import shutil
from pathlib import Path

import fangyan
import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.ranks]


def weights(cli):
    return load_file(cli.folder / "run/model/model.safetensors")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_train_on_two_ranks_is_one_rank(cli, one_rank, stage):
    cli.train(f"engine.zero_stage={stage}", ranks=2)
    left, right = cli.losses(), one_rank.losses()
    assert [step for step, _ in left] == [step for step, _ in right]
    assert [loss for _, loss in left] == pytest.approx([loss for _, loss in right], rel=1e-5)
    assert left[-1][1] < left[0][1] / 1.3
    found, expected = weights(cli), weights(one_rank)
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize(
    "overrides",
    [
        ("engine.zero_stage=3", "optimizer.name=adamw8bit"),
        ("engine.zero_stage=0", "engine.precision=bf16", "optimizer.name=adamw8bit"),
        (
            "engine.zero_stage=1",
            "optimizer={name: sgd, lr: 0.1, layer_decay: 0.85}",
            "train.gradient_accumulation_steps=2",
        ),
    ],
    ids=lambda overrides: " ".join(part.partition("=")[2] for part in overrides),
)
def test_train_on_two_ranks_with_other_optimizers_and_precisions(cli, overrides):
    cli.train(*overrides, ranks=2)
    losses = [loss for _, loss in cli.losses()]
    assert losses[-1] < losses[0] / 1.3
    assert all(weight.isfinite().all() for weight in weights(cli).values())


def test_train_on_two_ranks_exports_the_best_that_is_not_the_last(cli):
    """ZeRO 3 has no weights to load without their optimizer: the best checkpoint comes back whole."""
    stopping = ("train.epochs=9", "train.early_stopping=1", "train.checkpoint_every=null")
    cli.train("optimizer.lr=0.02", "engine.zero_stage=3", *stopping, ranks=2)
    state = json.loads((cli.folder / "run/checkpoints/last/state.json").read_text(encoding="utf-8"))["state"]
    assert state["best_step"] < state["step"]
    score = fangyan.evaluate(cli.folder / "run")["joint_f1"]
    assert score == pytest.approx(state["best_score"])


def test_train_on_more_ranks_than_sentences_in_a_step(cli):
    """A rank without work takes part with an empty batch, and the ranks do not hang."""
    (cli.folder / "few.conll").write_text("我\tB-r\n食\tB-v\n飯\tB-n\n\n" * 12, encoding="utf-8")
    data = ("data.format=conll", "data.train=few.conll", "data.dev=few.conll")
    cli.train(*data, "train.batch_tokens=1", "train.epochs=1", "engine.zero_stage=3", ranks=2)
    assert len(cli.losses()) == 12


def test_train_compiles_nothing_and_waits_for_no_lock(cli):
    """DeepSpeed's operator for shared memory: a run killed while it compiled left a lock for ever."""
    lock = cli.folder / "extensions/deepspeed_shm_comm/lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    before = set(Path("/dev/shm").iterdir())
    environment = {"TORCH_EXTENSIONS_DIR": str(cli.folder / "extensions")}
    out, err = cli.train("train.epochs=1", ranks=2, environment=environment)
    assert "built successfully" not in out + err
    assert list((cli.folder / "extensions").rglob("*")) == [lock.parent, lock]
    assert {path for path in set(Path("/dev/shm").iterdir()) - before if "deepspeed" in path.name} == set()


def test_train_resumes_on_other_ranks_with_the_same_dropout(cli):
    """Micro-batches stay, and masks follow them: what differs is the order of sums."""
    cli.train("engine.zero_stage=2", ranks=2)
    shutil.copytree(cli.folder / "run", cli.folder / "whole", symlinks=True)
    _, err = cli.train("engine.zero_stage=2", resume=cli.folder / "run/checkpoints/step-000016")
    assert "were resharded for 1" in err
    found, expected = ([loss for _, loss in cli.losses(run)] for run in ("run", "whole"))
    assert found == pytest.approx(expected, rel=2e-6)


def test_train_says_where_micro_batches_cannot_stay(cli):
    cli.train("engine.zero_stage=2", "train.epochs=1")
    recipe = cli.folder / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("epochs: 1", "epochs: 2"), encoding="utf-8")
    _, err = cli.train("engine.zero_stage=2", ranks=2, resume="auto")
    assert "1 micro-batches per step, which 2 ranks do not divide, become 2" in err
