"""The recipe's trackers, the real ones: a run that is killed and resumed is one run to each of them."""

import json
import time

import psutil
import pytest
from fangyan.errors import UserError
from fangyan.recipe import load_recipe
from fangyan.trackers import TRACKERS
from fangyan.trackers.tensorboard import TensorBoard
from fangyan.trackers.wandb import Wandb, log_records
from fangyan.training.train import train

ALL = "trackers=[tensorboard,{name: wandb, mode: offline},mlflow]"


def test_trackers_are_off_by_default_and_several_at_once():
    assert load_recipe("cantonese-pos").trackers == []
    recipe = load_recipe("cantonese-pos", ["trackers=[tensorboard,{name: wandb, project: x},mlflow]"])
    assert [tracker.name for tracker in recipe.trackers] == list(TRACKERS.members)
    assert recipe.trackers[1].project == "x"


@pytest.mark.parametrize(
    ("trackers", "sentence"),
    [
        ("[comet]", "trackers.0.name: found 'comet', expected one of 'tensorboard', 'wandb', 'mlflow'"),
        ("[{mode: offline}]", "trackers.0.name: missing; this field is required"),
        ("[mlflow,{name: mlflow, uri: x}]", "trackers: 'mlflow' is there twice, expected each tracker once"),
        ("[mlflow,{name: wandb, uri: x}]", "trackers.1.uri: unknown key of wandb; expected one of name, pro"),
        ("[{name: wandb, project: a/b}]", "trackers.0.project: string should match pattern"),
        ("wandb", "trackers: input should be a valid list, found 'wandb'"),
    ],
)
def test_trackers_that_are_none(trackers, sentence):
    with pytest.raises(UserError, match=sentence.replace("[", r"\[")):
        load_recipe("cantonese-pos", [f"trackers={trackers}"])


class Absent(TensorBoard):
    """A tracker whose package nobody has."""

    module = "no_such_package"
    package = "no-such-package"


def test_train_refuses_a_tracker_without_its_package(tmp_path, monkeypatch):
    """Before anything is loaded or written."""
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("cantonese-pos").model_copy(update={"trackers": [Absent()]})
    with pytest.raises(UserError, match="trackers: tensorboard needs .*; run: pip install no-such-package"):
        train(recipe)
    assert not list(tmp_path.iterdir())


def test_wandb_online_needs_a_login(tmp_path, monkeypatch):
    """It would ask for one on a terminal."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match="mode is online, but nobody is logged in to W&B; run: wandb login"):
        Wandb().check()
    Wandb(mode="offline").check()


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, cli_in):
    """A run with all trackers that was killed between two checkpoints, and what the resumed one has said."""
    for package in ("tensorboard", "wandb", "mlflow"):
        pytest.importorskip(package)
    cli = cli_in(tmp_path_factory.mktemp("tracked"))
    arguments = cli.train_arguments(ALL, "train.epochs=1", "train.checkpoint_every=4", resume="auto")
    environment = {"HOME": str(cli.folder), "WANDB_API_KEY": ""}
    process = cli.start(*arguments, environment=environment)
    metrics = cli.folder / "run" / "metrics.jsonl"
    while not (metrics.exists() and '"kind": "train", "step": 7' in metrics.read_text(encoding="utf-8")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    psutil.Process(process.pid).kill()
    process.communicate()
    cli.at_kill = len(metrics.read_text(encoding="utf-8").splitlines())
    cli.kept = (cli.folder / "run" / "trackers.json").read_text(encoding="utf-8")
    cli.out, cli.err = cli(*arguments, environment=environment)
    return cli


def recorded(cli):
    """Every record of the run as trackers name it: what, step, value; (name, step) for what a clock says."""
    lines = (cli.folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = []
    for record in map(json.loads, lines):
        prefix = record.get("split", record["kind"])
        about = ("kind", "step", "epoch", "split")
        found += [
            (f"{prefix}/{name}", record["step"], None if record["kind"] in ("speed", "time") else value)
            for name, value in record.items()
            if name not in about
        ]
    return sorted(found, key=str)


def without_clock(values):
    return sorted(
        (
            (name, step, None if name.startswith(("speed/", "time/")) else value)
            for name, step, value in values
        ),
        key=str,
    )


def wandb_rows(folder):
    """The rows of all files of W&B's, in the order that they were begun in."""
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for content in log_records(path.read_bytes()):
            record = Record.FromString(content)
            if record.HasField("history"):
                items = record.history.item
                yield {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}


@pytest.mark.slow
def test_a_resumed_run_is_one_run_of_wandb(resumed):
    """Its files have each record once, the killed run's too, and the same id."""
    rows = list(wandb_rows(resumed.folder / "run"))
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    found = [(name, row["step"], value) for row in rows for name, value in row.items() if "/" in name]
    assert without_clock(found) == recorded(resumed)
    names = {path.name.rpartition("-")[2] for path in resumed.folder.glob("run/wandb/offline-run-*")}
    assert names == {json.loads(resumed.kept)["wandb"]["id"]}
    first = min(resumed.folder.glob("run/wandb/offline-run-*/run-*.wandb"))
    # All but what was written in the tenth of a second before the kill, about two steps.
    assert sum(b"train/loss" in record for record in log_records(first.read_bytes())) >= 4


@pytest.mark.slow
def test_a_resumed_run_is_one_run_of_mlflow(resumed, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=str(resumed.folder / "mlruns"))
    (run,) = client.search_runs([client.get_experiment_by_name("fangyan").experiment_id])
    assert run.info.run_id == json.loads(resumed.kept)["mlflow"]["run"]
    assert (run.info.run_name, run.info.status) == ("cantonese-pos", "FINISHED")
    assert run.data.params["optimizer.lr"] == "0.01"
    found = [
        (metric.key, metric.step, metric.value)
        for key in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, key)
    ]
    assert without_clock(found) == recorded(resumed)


@pytest.mark.slow
def test_a_resumed_run_is_one_run_of_tensorboard(resumed):
    """It hides what the killed run has of steps that come again."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(resumed.folder / "run" / "tensorboard")).Reload()
    events = board.Scalars("train/loss")
    assert [(event.step, pytest.approx(event.value)) for event in events] == resumed.losses()


@pytest.mark.slow
def test_trackers_are_not_heard(resumed):
    """Nothing on the terminal but the run's own words, and no process is left."""
    assert resumed.at_kill >= 14
    assert "resuming" in resumed.err
    for word in ("wandb", "W&B", "mlflow", "MLflow", "tensorboard", "callback", "Warning"):
        assert word not in resumed.out + resumed.err
    running = [process for process in psutil.process_iter() if process.status() != psutil.STATUS_ZOMBIE]
    left = [process for process in running if "wandb" in process.name()]
    of_the_run = [process for process in left if str(resumed.folder) in str(process.environ())]
    # One of them ends by itself once the other has gone.
    assert psutil.wait_procs(of_the_run, timeout=20)[1] == []
