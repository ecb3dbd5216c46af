"""Checkpoints that are damaged, foreign or beside strange files: passed over, or refused, never run."""

import pickle
import re
import shutil
from dataclasses import asdict

import pytest
import torch
from fangyan.distributed.process_group import start_distributed
from fangyan.errors import UserError
from fangyan.training import checkpoint_files
from fangyan.training.checkpoint import Checkpoints
from fangyan.training.checkpoint_files import STATE, Content, digest, read_content, read_state
from fangyan.training.run_folder import RunFolder, Start
from fangyan.training.state import State


def write(checkpoints, step, best=None):
    """Write a checkpoint as a save does, of one small file."""
    path = checkpoints.path(step)
    path.mkdir(parents=True)
    torch.save({"weight": torch.arange(100.0)}, path / "model.pt")
    state = State(step=step, best_step=best, best_score=1.0)
    Content(state, {"model.pt": digest(path / "model.pt")}).write(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """A run folder with the checkpoints of steps 2 and 4."""
    start_distributed()
    found = RunFolder(tmp_path, Checkpoints(tmp_path / "checkpoints", keep=2))
    write(found.checkpoints, 2)
    write(found.checkpoints, 4)
    return found


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def append(file, content):
    file.write_bytes(file.read_bytes() + content)


def change_state(path, old, new):
    file = path / STATE
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


DAMAGES = {
    "one bit of the weights": (
        lambda path: flip(path / "model.pt", 700),
        "model.pt is not as it was written",
    ),
    "one bit of the header": (lambda path: flip(path / "model.pt", 2), "model.pt is not as it was written"),
    "zeros": (
        lambda path: (path / "model.pt").write_bytes(bytes((path / "model.pt").stat().st_size)),
        "model.pt is not as it was written",
    ),
    "a file is missing": (lambda path: (path / "model.pt").unlink(), "model.pt is missing"),
    "a byte more": (lambda path: append(path / "model.pt", b"x"), "bytes, expected"),
    "a digit of the state": (
        lambda path: change_state(path, '"step": 4', '"step": 5'),
        "is missing or damaged",
    ),
    "a state of the wrong type": (
        lambda path: change_state(path, '"epoch": 0', '"epoch": "x"'),
        "is missing or damaged",
    ),
    "no state": (lambda path: (path / STATE).unlink(), "is missing or damaged"),
    "an empty state": (lambda path: (path / STATE).write_bytes(b""), "is missing or damaged"),
    "a state that is a list": (
        lambda path: (path / STATE).write_bytes(b"[" * 100_000),
        "is missing or damaged",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(folder, name):
    damage, expected = DAMAGES[name]
    damage(folder.checkpoints.path(4))
    messages = []
    start = Start(folder.checkpoints.newest(messages), may_be_older=True)
    path, more = folder.undamaged(start)
    assert path == folder.checkpoints.path(2)
    (message,) = messages + more
    assert message.startswith("passed over: ")
    assert expected in message


def test_the_only_checkpoint_left_is_damaged(folder):
    for step in (2, 4):
        flip(folder.checkpoints.path(step) / "model.pt", 700)
    with pytest.raises(UserError, match="no older one is there; expected train without --resume"):
        folder.undamaged(Start(folder.checkpoints.newest([]), may_be_older=True))
    with pytest.raises(UserError, match="model.pt is not as it was written"):
        folder.undamaged(Start(folder.checkpoints.path(4)))


def test_strange_names_are_left_alone(folder):
    strange = folder.checkpoints.folder
    for name in ("step-", "step-abc", "notes", "step-000009x"):
        (strange / name).mkdir()
    (strange / "step-000099").write_text("a file", encoding="utf-8")
    assert folder.checkpoints.newest([]) == folder.checkpoints.path(4)
    folder.checkpoints._rotate(State(step=4))
    assert {"step-", "step-abc", "notes", "step-000009x", "step-000099"} < {p.name for p in strange.iterdir()}


def test_what_kills_leave_is_removed(folder):
    checkpoints = folder.checkpoints.folder
    (checkpoints / "step-000006.partial").mkdir()
    (checkpoints / "step-000099.partial").write_text("a file", encoding="utf-8")
    folder.checkpoints._make(checkpoints / "step-000008.partial")
    assert sorted(p.name for p in checkpoints.iterdir()) == [
        "step-000002",
        "step-000004",
        "step-000008.partial",
    ]


def test_amend_keeps_the_best_and_the_newest(folder):
    folder.checkpoints.keep = 1
    folder.checkpoints.amend(State(step=4, epoch=1, best_step=2, best_score=1.0))
    assert read_state(folder.checkpoints.path(4)).epoch == 1
    assert read_state(folder.checkpoints.path(2)).step == 2
    folder.checkpoints.amend(State(step=4, epoch=1, best_step=4, best_score=2.0))
    assert not folder.checkpoints.path(2).exists()
    assert (folder.checkpoints.folder / "best").resolve() == folder.checkpoints.path(4)
    assert folder.checkpoints.problem(folder.checkpoints.path(4), []) is None


def test_a_disk_without_room_is_refused(folder):
    folder.checkpoints.assert_room(1)
    with pytest.raises(UserError, match=r"checkpoints: .* GB are free, expected 1000000000.00 GB at least"):
        folder.checkpoints.assert_room(10**18)


@pytest.mark.parametrize("name", ["/etc/passwd", "../model.pt", "a/../../model.pt"])
def test_a_checkpoint_of_files_that_are_elsewhere_is_refused(folder, name):
    whole = read_content(folder.checkpoints.path(4))
    Content(whole.state, {name: whole.files["model.pt"]}).write(folder.checkpoints.path(4))
    with pytest.raises(UserError, match="not a whole checkpoint"):
        read_content(folder.checkpoints.path(4))


class Attack:
    """What a pickle runs where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_load_runs_nothing(tmp_path):
    for name, content in (
        ("zip.pt", lambda file: torch.save({"weight": torch.zeros(2), "x": Attack(tmp_path / "ran")}, file)),
        ("pickle.pt", lambda file: file.write_bytes(pickle.dumps(Attack(tmp_path / "ran")))),
    ):
        content(tmp_path / name)
        with pytest.raises(UserError, match=rf"{name}: (it holds what no checkpoint does|not a file of a)"):
            checkpoint_files.load(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def stopped(cli_in, tmp_path_factory):
    """Runs of one epoch of two, per ZeRO stage, on few sentences."""
    found = {}
    for stage in (0, 2):
        cli = cli_in(tmp_path_factory.mktemp(f"stage-{stage}"))
        (cli.folder / "few.conll").write_text("我\tB-r\n食\tB-v\n飯\tB-n\n\n" * 12, encoding="utf-8")
        cli.options = ("data.format=conll", "data.train=few.conll", "data.dev=few.conll")
        cli.options += (f"engine.zero_stage={stage}", "train.batch_tokens=15", "train.keep_checkpoints=9")
        cli.train(*cli.options, "train.epochs=1")
        recipe = cli.folder / "run" / "recipe.yaml"
        text = recipe.read_text(encoding="utf-8")
        recipe.write_text(text.replace("epochs: 1", "epochs: 2"), encoding="utf-8")
        found[stage] = cli
    return found


@pytest.fixture
def half_done(stopped, cli):
    """A function that copies one of them."""

    def copy(stage):
        shutil.copytree(stopped[stage].folder, cli.folder, dirs_exist_ok=True, symlinks=True)
        cli.options = stopped[stage].options
        return cli, (cli.folder / "run/checkpoints/last").resolve()

    return copy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "pattern"),
    [(0, "mp_rank_00_model_states.pt"), (2, "*model_states.pt"), (2, "*optim_states.pt")],
)
def test_train_runs_nothing_from_a_foreign_checkpoint(half_done, stage, pattern):
    """Whoever can write the file can write its digest."""
    cli, last = half_done(stage)
    (file,) = last.glob(pattern)
    content = checkpoint_files.load(file)
    torch.save({**content, "x": Attack(cli.folder / "ran")}, file)
    whole = read_content(last)
    Content(whole.state, {**whole.files, file.name: digest(file)}).write(last)
    _, err = cli.train(*cli.options, resume="auto", code=2)
    assert "it holds what no checkpoint does, and was not read" in err
    assert len(err.strip().splitlines()) == 1
    assert not (cli.folder / "ran").exists()


@pytest.mark.slow
def test_train_says_that_the_best_checkpoint_is_lost_and_exports_another(half_done):
    cli, last = half_done(0)
    state = read_state(last)
    best = last.with_name("step-000002")
    flip(best / "mp_rank_00_model_states.pt", 1000)
    assert state.best_step is not None
    Content(State(**{**asdict(state), "best_step": 2, "best_score": 1e9}), read_content(last).files).write(
        last
    )
    _, err = cli.train(*cli.options, resume="auto")
    assert "the best checkpoint is lost, and the best from here on takes its place" in err
    assert "step-000002" in err
    end = read_state((cli.folder / "run/checkpoints/last").resolve())
    assert end.best_step is not None
    assert end.best_step > state.step
    assert (cli.folder / "run/model/model.safetensors").exists()


@pytest.mark.slow
def test_train_resumes_beside_damaged_metrics(half_done):
    cli, last = half_done(0)
    step = read_state(last).step
    metrics = cli.folder / "run" / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    assert len(lines) > 4
    damaged = [*lines[:2], b"5\n", b"\xff\xfe\n", b'{"step": "x"}\n', *lines[2:], b'{"kind": "tra']
    metrics.write_bytes(b"".join(damaged))
    _, err = cli.train(*cli.options, resume="auto")
    assert "metrics.jsonl: 3 damaged lines are dropped" in err
    losses = cli.losses()
    assert [found for found, _ in losses] == list(range(1, len(losses) + 1))
    assert len(losses) == 2 * step
    records = [(record["kind"], record["step"], record.get("split")) for record in cli.records()]
    assert len(records) == len(set(records))
    metrics.unlink()
    _, err = cli.train(*cli.options, resume="auto")
    assert re.search(r"metrics.jsonl is missing: the records up to step \d+ are lost", err)
