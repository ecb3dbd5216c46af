"""The command line: help, environment, and mistakes that end in one sentence and exit code 2."""

import subprocess
import sys
from pathlib import Path

import pytest


def test_help_shows_every_recipe_field(cli):
    out, _ = cli("train", "--help")
    for field in ("data.format", "engine.zero_stage", "train.batch_tokens", "freeze.layers"):
        assert field in out
    assert "--resume" in out
    assert "--local_rank" not in out


def test_env(cli):
    """By the console script itself, where other tests save the time of its imports."""
    script = Path(sys.executable).with_name("fangyan")
    out = subprocess.run([script, "env"], cwd=cli.folder, capture_output=True, text=True, check=True).stdout
    for name in ("torch", "deepspeed", "bitsandbytes", "processor", "GPU"):
        assert name in out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.epoch=3"], "cantonese-pos.yaml: train.epoch: unknown key; expected one of epochs"),
        (["data.format=conll", "data.train=none.conll"], "none.conll: no such file"),
        (["data.format=conll", "data.train=bad.conll"], "bad.conll:2: 3 columns, expected 2 (token, tag)"),
        (["task.labels=[B-n,I-n]"], "is not in the tag set of 2: B-n, I-n"),
        (["model.path=empty"], "model.path: no token classifier can be loaded from the folder 'empty'"),
        (["train.metric=f2"], "train.metric: 'f2' is no score of this task, expected one of token_accuracy"),
        (["freeze.layers=9"], "freeze.layers: layer 9, but the model has layers 0-5"),
    ],
)
def test_mistakes(cli, overrides, message):
    (cli.folder / "empty").mkdir()
    (cli.folder / "bad.conll").write_text("a\tO\nb\tO\tx\n")
    _, err = cli.train(*overrides, code=2)
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_folders_that_are_not_runs_are_left_alone(cli):
    (cli.folder / "run").mkdir()
    (cli.folder / "run" / "thesis.txt").write_text("x")
    _, err = cli.train(code=2)
    assert err.strip().endswith("holds files but no run, expected an empty or a new folder")
    assert (cli.folder / "run" / "thesis.txt").exists()
    (cli.folder / "file").write_text("x")
    _, err = cli.train(code=2, run="file")
    assert "file: Not a directory" in err
    assert len(err.strip().splitlines()) == 1


def test_a_loss_that_is_not_finite(cli):
    """Earlier checkpoints stay, and none is written after it."""
    _, err = cli.train("optimizer.lr=1e30", "train.gradient_clipping=0.0", "train.checkpoint_every=1", code=2)
    assert "optimizer.lr: the loss is nan at step 2 with a rate of" in err
    assert err.strip().count("\n") == 0
    steps = [path.name for path in (cli.folder / "run/checkpoints").glob("step-*")]
    assert steps == ["step-000001"]


def test_predict_and_evaluate_need_a_run(cli):
    _, err = cli("predict", "nowhere", "text", code=2)
    assert err.strip() == "fangyan: nowhere: no such run"
    _, err = cli("predict", str(cli.folder), code=2)
    assert "predict needs sentences" in err
    _, err = cli("evaluate", str(cli.folder), code=2)
    assert "no exported model in it" in err
