"""Kills, resumes and damaged checkpoints: losses exact, nothing finished lost."""

import resource
import shutil
import time
from contextlib import suppress

import psutil
import pytest
from fangyan.errors import UserError
from fangyan.training.checkpoint_files import read_state

pytestmark = pytest.mark.slow

SETTINGS = {
    "one rank": (1, ("train.token_masking=0.05",)),
    "two ranks, ZeRO 2, 8-bit": (2, ("engine.zero_stage=2", "optimizer.name=adamw8bit")),
}


def kill_when(cli, condition, *arguments, ranks):
    """Start a run and kill it, all ranks at once, at the first moment that ``condition`` holds."""
    process = cli.start(*arguments, ranks=ranks)
    try:
        while process.poll() is None and not condition():
            time.sleep(0.002)
        assert process.poll() is None, process.communicate()[1][-2000:]
    finally:
        for pid in process.pids:
            _kill_tree(pid)
        process.communicate()


def _kill_tree(pid):
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [*parent.children(recursive=True), parent]:
            process.kill()


@pytest.mark.parametrize(
    "name", ["one rank", pytest.param("two ranks, ZeRO 2, 8-bit", marks=pytest.mark.ranks)]
)
def test_train_resumes_a_killed_run_to_the_same_losses(cli, name):
    """Killed in mid-write, then between checkpoints; resumed each time; dropout is on."""
    ranks, overrides = SETTINGS[name]
    cli.train(*overrides, ranks=ranks, run="whole")
    checkpoints = cli.folder / "run" / "checkpoints"
    arguments = cli.train_arguments(*overrides, resume="auto")
    kill_when(cli, lambda: list(checkpoints.glob("step-000004.partial/*")), *arguments, ranks=ranks)
    assert read_state((checkpoints / "last").resolve()).step == 2
    metrics = cli.folder / "run" / "metrics.jsonl"
    kill_when(cli, lambda: '"step": 5' in metrics.read_text(encoding="utf-8"), *arguments, ranks=ranks)
    assert read_state((checkpoints / "last").resolve()).step >= 4
    _, err = cli(*arguments, ranks=ranks)
    assert "resuming" in err
    assert not list(checkpoints.glob("*.partial"))
    whole = cli.losses("whole")
    assert [step for step, _ in whole] == list(range(1, len(whole) + 1))
    assert cli.losses() == whole
    assert cli.records() == cli.records("whole")


@pytest.mark.parametrize(
    ("ranks", "optimizer", "stage"),
    [
        pytest.param(1, "adamw", 0, id="one pass"),
        pytest.param(2, "adamw8bit", 2, id="8-bit", marks=pytest.mark.ranks),
    ],
)
def test_train_resumes_bf16_exactly(cli, ranks, optimizer, stage):
    """From its float32 copies and its states, each rank from its own."""
    (cli.folder / "few.conll").write_text("我\tB-r\n食\tB-v\n飯\tB-n\n\n" * 12, encoding="utf-8")
    data = ("data.format=conll", "data.train=few.conll", "data.dev=few.conll", "train.batch_tokens=15")
    options = (*data, "train.keep_checkpoints=9", f"optimizer.name={optimizer}")
    options += ("engine.precision=bf16", f"engine.zero_stage={stage}")
    cli.train(*options, ranks=ranks)
    whole = cli.losses()
    assert len(whole) >= 4
    cli.train(*options, resume=cli.folder / "run/checkpoints/step-000002", ranks=ranks)
    assert cli.losses() == whole


@pytest.fixture
def half_done(cli):
    """A run of one epoch of two, with its two newest checkpoints."""
    cli.train("train.epochs=1")
    recipe = cli.folder / "run" / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text.replace("epochs: 1", "epochs: 2"), encoding="utf-8")
    return cli


def newest(cli):
    return (cli.folder / "run/checkpoints/last").resolve()


def test_train_passes_over_a_checkpoint_cut_short(half_done):
    cut = newest(half_done)
    file = next(cut.glob("*.pt"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=rf"cut short: {file.name} has 1,000 bytes, expected"):
        read_state(cut)
    _, err = half_done.train(resume=cut, code=2)
    assert "cut short" in err
    assert len(err.strip().splitlines()) == 1
    _, err = half_done.train(resume="auto")
    assert "passed over" in err
    assert "resuming" in err
    checkpoints = half_done.folder / "run" / "checkpoints"
    for path in checkpoints.glob("step-*"):
        read_state(path)
    assert read_state(newest(half_done)).epoch == 2


def test_train_resumes_the_same_run_alone(half_done):
    _, err = half_done.train("optimizer.lr=5e-3", resume="auto", code=2)
    assert "the run has optimizer.lr=0.01, the recipe 0.005; expected the same to resume" in err
    _, err = half_done.train(resume="nowhere", code=2)
    assert "--resume nowhere: no such checkpoint" in err
    _, err = half_done.train("optimizer={name: sgd, lr: 1e-3, layer_decay: 0.85}", resume="auto", code=2)
    assert "the run has optimizer.name=adamw, the recipe sgd" in err
    shutil.rmtree(half_done.folder / "run" / "checkpoints")
    _, err = half_done.train("train.epochs=1", resume="auto")
    assert "starting afresh" in err


def test_save_on_a_full_disk_leaves_the_last_checkpoint(half_done):
    """A limit on the size of a file stands for a full disk: the write itself fails."""
    before = newest(half_done)
    process = half_done.start(*half_done.train_arguments(resume="auto"))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "the checkpoint cannot be written" in err
    assert f"the last whole checkpoint is {before}" in err
    assert newest(half_done) == before
    assert read_state(before).step > 0
    half_done.train(resume="auto")
