"""What follows a run: what it is told, and that nothing it does costs the run."""

from contextlib import suppress

import pytest
from fangyan.distributed.process_group import start_distributed
from fangyan.errors import Diverged, Stopped, UserError
from fangyan.recipe import load_recipe
from fangyan.trackers.callback import Callback, Listeners
from fangyan.trackers.mlflow import MLflow
from fangyan.trackers.tensorboard import TensorBoard
from fangyan.training.advice import closing_words, facts
from fangyan.training.checkpoint import Checkpoints
from fangyan.training.following import run_name
from fangyan.training.run_folder import RunFolder, Start
from fangyan.training.trainer import Trainer
from small_disk import fill, mounted


class Told(Callback):
    """Keeps what it is told."""

    def __init__(self):
        self.calls = []

    def start(self, *arguments):
        self.calls.append(("start", *arguments))

    def metrics(self, *arguments):
        self.calls.append(("metrics", *arguments))

    def end(self, *arguments):
        self.calls.append(("end", *arguments))


class Failing(Told):
    """Fails where it is told of an evaluation."""

    def metrics(self, kind, *arguments):
        super().metrics(kind, *arguments)
        if kind == "evaluation":
            raise ValueError("no\nsuch place")


def listeners(callbacks, said, folder):
    return Listeners(callbacks, said.append, ("x", folder, {"name": "x"}, None))


@pytest.mark.slow
def test_fit_tells_callbacks(tmp_path, cli, monkeypatch):
    """Start, all records and the end; one that fails is named once, and the run goes on without it."""
    monkeypatch.chdir(tmp_path)
    start_distributed()
    overrides = cli.train_arguments("train.epochs=1", "train.packing=false")[2:]
    trainer = Trainer(load_recipe("cantonese-pos", [o for o in overrides if not o.startswith("--")]))
    trainer.start_engine()
    folder = RunFolder(tmp_path / "run", Checkpoints(tmp_path / "run" / "checkpoints", keep=1))
    told, failing = Told(), Failing()
    result = trainer.fit(folder, Start(), callbacks=[failing, told])
    found = facts(trainer, 1e9)
    assert closing_words(trainer, 1e9) == []  # so short a run has nothing to gain
    trainer.engine.destroy()

    start, *records, end = told.calls
    assert start == ("start", "cantonese-pos", tmp_path / "run", trainer.recipe.model_dump(mode="json"), None)
    assert {(kind, split) for _, kind, split, *_ in records} == {
        ("train", ""), ("speed", ""), ("time", ""), ("evaluation", "dev"), ("evaluation", "dev-best"),
    }  # fmt: skip
    losses = [values["loss"] for _, kind, _, _, _, values in records if kind == "train"]
    assert losses == [loss for _, loss in cli.losses()]
    assert end == ("end", "finished", result.after)
    assert [call[0] for call in failing.calls] == ["start", "metrics"]
    log = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert log.count("Failing") == 1
    assert "callback Failing.metrics failed (ValueError: no such place): it is not called again" in log
    # What advice is given by: short sentences beside longer ones are padded.
    assert 0.2 < found.padding < 0.9
    (batches,) = trainer.batches
    assert found.batch == sum(sum(trainer.lengths[i] for i in batch) for batch in batches) / result.steps
    assert 0 < found.clock.seconds("data") < found.clock.seconds("steps") < found.total
    assert 0 < found.clock.seconds("checkpoints on the way") < found.clock.seconds("checkpoint")


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "stopped"), (Stopped("SIGTERM", 0), "stopped"), (Diverged("the loss is inf"), "failed")],
)
def test_listeners_are_told_how_a_run_ended(tmp_path, error, status):
    """A search ends a run without a word."""
    told = Told()
    with suppress(UserError), listeners([told], [], tmp_path):
        if error is not None:
            raise error
    assert told.calls[-1] == ("end", status, {})


def test_a_tracker_without_a_place_to_write_ends_no_run(tmp_path):
    pytest.importorskip("mlflow")
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "run").mkdir()
    said = []
    with listeners([MLflow(uri=str(tmp_path / "file")).build()], said, tmp_path / "run") as told:
        told.metrics("train", "", 1, 0, {"loss": 1.0})
    (sentence,) = said
    assert "callback MLflowRun.start failed (" in sentence
    assert "the run goes on" in sentence


def test_a_tracker_on_a_full_disk_ends_no_run(tmp_path):
    pytest.importorskip("tensorboard")
    with mounted(tmp_path / "disk", 1 << 16) as disk:
        said = []
        with listeners([TensorBoard().build()], said, disk) as told:
            told.metrics("train", "", 1, 0, {"loss": 1.0})
            assert said == []
            fill(disk)
            for step in range(2, 300):
                told.metrics("train", "", step, 0, {"loss": 1.0})
    (sentence,) = said
    assert "callback TensorBoardFile.metrics failed (OSError: [Errno 28] No space left" in sentence


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("runs/my-ner", "my-ner"),
        ("runs/x/seed-3", "my-ner-seed-3"),
        ("runs/x/seed-0-fold-2", "my-ner-seed-0-fold-2"),
        ("runs/x/trial-0004", "my-ner-trial-0004"),
        ("runs/x/seed-1/second", "my-ner-seed-1"),
    ],
)
def test_run_name_tells_runs_of_one_recipe_apart(folder, name):
    recipe = load_recipe("cantonese-pos", ["name=my-ner", f"run_dir={folder}"])
    assert run_name(recipe) == name
