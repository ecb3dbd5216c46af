"""A disk that fills up anywhere in a run: a sentence with advice, and nothing half-made stays."""

import re
import shutil
from pathlib import Path

import pytest
from fangyan.data.example import Example
from fangyan.distributed.process_group import start_distributed
from fangyan.errors import UserError
from fangyan.recipe import load_recipe
from fangyan.tasks.report import ClassScores, Report
from fangyan.training.checkpoint import Checkpoints
from fangyan.training.checkpoint_files import Content, read_content
from fangyan.training.logger import Logger
from fangyan.training.run_folder import RunFolder
from fangyan.training.state import State
from small_disk import fill, mounted

PAGE = 4096
SENTENCE = (
    r"cannot be written \(No space left on device\); 0\.\d{3} GB are free on its disk; "
    "(the checkpoints are whole; )?after making room, train --resume auto, or the same tune command, resumes "
)


@pytest.fixture
def disk(tmp_path):
    start_distributed()
    with mounted(tmp_path / "disk", 64 * PAGE) as folder:
        yield folder


def write_log(run):
    with Logger(run, active=True) as logger:
        logger.info("x" * 3 * PAGE)
        logger.metrics("train", 1, 0, {"x" * 3 * PAGE: 1.0})


def write_report(run):
    scores = [ClassScores(f"class-{i}", 50.0, 50.0, 50.0, i) for i in range(100)]
    Report("tag", scores, []).write(run / "reports" / "dev-best.json")


def write_inputs(run):
    examples = [Example({"text": "x" * PAGE}, "source", "group")] * 3
    with RunFolder(run, Checkpoints(run / "checkpoints", 1)) as folder:
        folder.write_inputs(load_recipe("cantonese-pos"), {"train": [], "dev": examples})


def write_state(run):
    checkpoints = Checkpoints(run / "checkpoints", 1)
    path = checkpoints.path(1)
    if not path.exists():
        path.mkdir(parents=True)
        Content(State(step=1), {}).write(path)
    checkpoints.amend(State(step=1, before={"dev": {"x" * 3 * PAGE: 1.0}}))


APPENDED = ("log.txt", "metrics.jsonl")


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (write_log, {"log.txt", "metrics.jsonl"}),
        (write_report, {"dev-best.json"}),
        (write_inputs, {"run", "recipe.yaml", "dev.jsonl"}),
        (write_state, {"state.json"}),
    ],
)
def test_whatever_room_is_left(disk, write, expected):
    """For each number of free pages until it is enough: a sentence, and no part of a file under its name."""
    run = disk / "run"
    write(run)
    whole = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    sentences = []
    for pages in range(64):
        shutil.rmtree(run, ignore_errors=True)
        filler = fill(disk, leave=pages * PAGE)
        try:
            write(run)
            break
        except UserError as error:
            sentences.append(str(error))
        finally:
            filler.unlink()
        for path in run.rglob("*"):
            if path.name == "state.json":
                read_content(path.parent)  # the old or the new one
            elif path.is_file() and not str(path.relative_to(run)).startswith(APPENDED):
                assert path.read_bytes() == whole[path], path
    assert sentences
    assert [sentence for sentence in sentences if not re.search(SENTENCE, sentence)] == []
    named = {Path(sentence.partition(" cannot")[0]).name for sentence in sentences}
    assert named >= expected


@pytest.mark.slow
def test_before_the_first_step(tmp_path, cli_in, finished):
    """After making room, the run has the losses of one that was never disturbed."""
    with mounted(tmp_path / "disk", 1 << 30) as disk:
        cli = cli_in(disk)
        arguments = ["data.test=[FC-R011_v]", "train.epochs=3"]
        filler = fill(disk, leave=8 * PAGE)
        # What the test writes of the command's output lies elsewhere.
        cli.folder = tmp_path
        _, err = cli.train(*arguments, run="disk/run", code=2)
        assert re.search(r"checkpoints: 0.00 GB are free, expected 0.0\d GB at least for a checkpoint", err)
        assert "Traceback" not in err
        filler.unlink()
        cli.train(*arguments, run="disk/run", resume="auto")
        assert cli.losses("disk/run") == finished.losses()


@pytest.mark.slow
def test_during_the_export(tmp_path, cli_in, finished):
    """The checkpoints are whole, no part of the model stays, and after making room the export is the same."""
    cli = cli_in(tmp_path)
    with mounted(tmp_path / "disk", 1 << 30) as disk:
        shutil.copytree(finished.folder / "run", disk / "run", symlinks=True)
        model = disk / "run" / "model"
        expected = {path.name: path.read_bytes() for path in model.iterdir()}
        shutil.rmtree(model)
        arguments = ["data.test=[FC-R011_v]", "train.epochs=3"]
        filler = fill(disk, leave=len(expected["model.safetensors"]) // 2)
        _, err = cli.train(*arguments, run="disk/run", resume="auto", code=2)
        assert re.search(SENTENCE, err), err
        assert "Traceback" not in err
        assert not list((disk / "run").glob("model*"))
        filler.unlink()
        cli.train(*arguments, run="disk/run", resume="auto")
        found = {path.name: path.read_bytes() for path in model.iterdir()}
        for files in (found, expected):
            files.pop("README.md")  # it names the run folder
        assert found == expected
