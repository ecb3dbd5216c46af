"""The command line: help, environment, and mistakes that end in one sentence and exit code 2."""

import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import tiny_exports


def test_train_help_shows_every_recipe_field(cli):
    out, _ = cli("train", "--help")
    for field in ("data.format", "engine.zero_stage", "train.batch_tokens", "adaptation.freeze_layers"):
        assert field in out
    assert "--resume" in out
    assert "--local_rank" not in out


def test_env(cli):
    """By the console script itself, where other tests save the time of its imports."""
    script = Path(sys.executable).with_name("fangyan")
    command = [script, "env"]
    out = subprocess.run(command, cwd=cli.folder, capture_output=True, encoding="utf-8", check=True).stdout
    for name in ("torch", "deepspeed", "bitsandbytes", "processor", "GPU"):
        assert name in out


ENDS = """
import atexit, threading, time
from fangyan.cli.end import leave

threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
atexit.register(print, "at exit")
print("output", end=" ")
leave(3)
print("never")
"""


@pytest.mark.parametrize(
    ("output", "code", "out", "err"),
    [
        (subprocess.PIPE, 3, "output thread\nat exit\n", ""),
        ("/dev/full", 2, None, "fangyan: the output cannot be written (No space left on device)\n"),
    ],
)
def test_a_command_ends_as_python_does(monkeypatch, output, code, out, err):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    with ExitStack() as stack:
        stdout = (
            stack.enter_context(open(output, "w", encoding="utf-8")) if isinstance(output, str) else output
        )
        command = [sys.executable, "-c", ENDS]
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, encoding="utf-8")
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.epoch=3"], "cantonese-pos.yaml: train.epoch: unknown key; expected one of epochs"),
        (["data.format=conll", "data.train=none.conll"], "none.conll: no such file"),
        (["data.format=conll", "data.train=bad.conll"], "bad.conll:2: 3 columns, expected 2 (token, tag)"),
        (["task.labels=[B-n,I-n]"], "is not in the tag set of 2: B-n, I-n"),
        (
            ["model.path=empty"],
            "model.path: AutoModelForTokenClassification cannot be loaded from the folder 'empty'",
        ),
        (
            ["train.metric=f2"],
            "train.metric: 'f2' is no metric of this task, expected one of token_accuracy",
        ),
        (["adaptation.freeze_layers=9"], "adaptation.freeze_layers: layer 9, but the model has layers 0-5"),
        (["optimizer.momentum=0.9"], "optimizer.momentum: unknown key of adamw"),
    ],
)
def test_train_with_a_mistake(cli, overrides, message):
    (cli.folder / "empty").mkdir()
    (cli.folder / "bad.conll").write_text("a\tO\nb\tO\tx\n", encoding="utf-8")
    _, err = cli.train(*overrides, code=2)
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_train_leaves_folders_that_are_no_runs_alone(cli):
    (cli.folder / "run").mkdir()
    (cli.folder / "run" / "thesis.txt").write_text("x", encoding="utf-8")
    _, err = cli.train(code=2)
    assert err.strip().endswith("holds files but no run, expected an empty or a new folder")
    assert [path.name for path in (cli.folder / "run").iterdir()] == ["thesis.txt"]
    # A recipe alone is no run.
    (cli.folder / "run" / "recipe.yaml").write_text("name: mine\n", encoding="utf-8")
    _, err = cli.train(code=2)
    assert err.strip().endswith("holds files but no run, expected an empty or a new folder")
    assert (cli.folder / "run" / "recipe.yaml").read_text(encoding="utf-8") == "name: mine\n"
    (cli.folder / "file").write_text("x", encoding="utf-8")
    _, err = cli.train(code=2, run="file")
    assert "file is a file, expected a folder or a new name" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.slow
def test_train_with_a_loss_that_is_not_finite(cli):
    """Earlier checkpoints stay, and none is written after it."""
    options = ("optimizer.lr=1e3", "optimizer.weight_decay=1e3", "train.checkpoint_every=1")
    _, err = cli.train(*options, "train.keep_checkpoints=9", code=2)
    found = re.search(r"optimizer.lr: the loss is nan at step (\d+) with a learning rate of", err)
    assert found, err
    assert err.splitlines()[-1].startswith("fangyan: optimizer.lr")
    steps = sorted(path.name for path in (cli.folder / "run/checkpoints").glob("step-*"))
    assert steps == [f"step-{step:06d}" for step in range(1, int(found[1]))]


def test_predict_and_evaluate_without_a_run(cli):
    _, err = cli("predict", "nowhere", "text", code=2)
    assert err.strip() == "fangyan: nowhere: no such run"
    _, err = cli("evaluate", str(cli.folder), code=2)
    assert "no exported model in it" in err


def test_predict_takes_either_sentences_or_a_file(cli):
    sentence = "predict needs either sentences, or --input with a file (- for standard input)"
    _, err = cli("predict", str(cli.folder), code=2)
    assert err.strip() == f"fangyan: {sentence}"
    (cli.folder / "in.txt").write_text("食飯\n", encoding="utf-8")
    out, err = cli("predict", str(cli.folder), "食飯", "--input", "in.txt", code=2)
    assert err.strip() == f"fangyan: {sentence}"
    assert out == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--max-new-tokens", "max_new_tokens: is for models that write text, found a tagger"),
        ("--temperature", "temperature: is for models that write text, found a tagger"),
    ],
)
def test_predict_with_an_option_that_a_tagger_has_not(finished, option, message):
    _, err = finished("predict", str(finished.folder / "run"), "食飯", option, "5", code=2)
    assert err.strip() == f"fangyan: {message}"


@pytest.mark.slow
def test_train_goes_on_without_anyone_who_reads(cli):
    """As behind `| head`, or where the connection is gone by which it was started."""
    (cli.folder / "few.conll").write_text("我\tB-r\n食\tB-v\n飯\tB-n\n\n" * 12, encoding="utf-8")
    data = ("data.format=conll", "data.train=few.conll", "data.dev=few.conll")
    command = [sys.executable, "-m", "fangyan", *cli.train_arguments(*data, "train.epochs=2")]
    with subprocess.Popen(
        command, cwd=cli.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        line = process.stdout.readline().decode()
        process.stdout.close()
    assert process.returncode == 0, line
    assert "epoch  2  dev" in (cli.folder / "run/log.txt").read_text(encoding="utf-8")
    assert (cli.folder / "run/model/model.safetensors").is_file()


@pytest.mark.slow
def test_train_beside_the_users_recipe_leaves_it_alone(cli):
    recipe = cli.folder / "recipe.yaml"
    recipe.write_text("name: mine\n", encoding="utf-8")
    _, err = cli("train", "cantonese-pos", f"run_dir={cli.folder}", code=2)
    assert f"run_dir: {cli.folder} holds files but no run, expected an empty or a new folder" in err
    assert recipe.read_text(encoding="utf-8") == "name: mine\n"


@pytest.mark.parametrize("command", [["predict", "nowhere"], ["train"], ["train", "cantonese-pos"]])
def test_an_argument_that_is_no_text(cli, command):
    _, err = cli(*command, "a\udcff", code=2)
    assert err == "fangyan: argument 'a\\udcff': not UTF-8, expected text\n"


@pytest.mark.slow
def test_predict_to_a_pipe_a_link_and_a_full_disk(cli):
    """None of them becomes another kind of file."""
    model = tiny_exports.tagger(cli.folder / "tagger")
    os.mkfifo(cli.folder / "pipe")
    reader = os.open(cli.folder / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    (cli.folder / "target").write_text("old", encoding="utf-8")
    (cli.folder / "link").symlink_to("target")
    for name in ("pipe", "link"):
        cli("predict", str(model), "食飯", "--output", str(cli.folder / name))
    written = (cli.folder / "target").read_text(encoding="utf-8")
    assert written.endswith("\n")
    assert os.read(reader, 1000).decode() == written
    os.close(reader)
    assert (cli.folder / "pipe").is_fifo()
    assert (cli.folder / "link").is_symlink()
    before = os.stat("/dev/full")
    _, err = cli("predict", str(model), "食飯", "--output", "/dev/full", code=2)
    assert "/dev/full cannot be written (No space left on device)" in err
    assert os.path.samestat(os.stat("/dev/full"), before)


def test_predict_into_a_folder(cli):
    model = tiny_exports.tagger(cli.folder / "model")
    for output in (".", "model", ""):
        _, err = cli("predict", str(model), "食飯", "--output", output, code=2)
        assert err.strip().endswith("a folder, expected a file")


def test_a_file_whose_name_is_too_long(cli):
    _, err = cli("train", "x" * 5000, code=2)
    assert len(err) < 700
    assert "File name too long" in err


@pytest.mark.slow
def test_predict_and_train_in_an_environment_without_anything(tmp_path):
    """No PATH, no locale, another encoding: what is written is UTF-8."""
    model = tiny_exports.tagger(tmp_path / "model")
    (tmp_path / "a.conll").write_text("我\tB-n\n食\tB-v\n", encoding="utf-8")
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "HOME", "HF_HUB_OFFLINE") if name in os.environ}
    data = ["data.format=conll", "data.train=a.conll", "data.dev=a.conll", "data.test=null", "train.epochs=1"]
    for variables, arguments in (
        ({"PYTHONIOENCODING": "ascii"}, ["predict", str(model), "食飯"]),
        (
            {"PYTHONIOENCODING": "latin-1", "LC_ALL": "C"},
            ["train", "cantonese-pos", *data, f"model.path={model}", "name=方言"],
        ),
    ):
        command = [sys.executable, "-m", "fangyan", *arguments]
        result = subprocess.run(command, cwd=tmp_path, env=kept | variables, capture_output=True)
        assert result.returncode == 0, result.stderr.decode()
        assert "食" in result.stdout.decode() or "方言" in result.stdout.decode()
    assert (tmp_path / "runs" / "方言" / "model").is_dir()
