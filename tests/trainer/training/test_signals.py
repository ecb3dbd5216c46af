"""Signals: a checkpoint at the next step, a sentence, an exit code, and a resumed run that is exact."""

import itertools
import os
import signal
import socket
import time
from contextlib import suppress

import forked_command
import psutil
import pytest
from fangyan.errors import RESUMING
from fangyan.training.checkpoint_files import read_state
from forked_command import ForkedCommand, of_ranks
from slow_steps import delay, hang

pytestmark = pytest.mark.slow


def wait_for(cli, process, condition):
    """Wait until a running process's folder holds what the condition looks for."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def has_record(cli, text):
    metrics = cli.folder / "run" / "metrics.jsonl"
    return lambda: metrics.exists() and text in metrics.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def undisturbed(cli_in, tmp_path_factory):
    cli = cli_in(tmp_path_factory.mktemp("undisturbed"))
    cli.train("train.checkpoint_every=null")
    return cli


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 0), ("SIGHUP", 0), ("SIGINT", 130)])
def test_train_saves_where_a_signal_ends_it(cli, undisturbed, name, code):
    """Between checkpoints: there would be none before the epoch's end."""
    arguments = cli.train_arguments("train.checkpoint_every=null", resume="auto")
    process = cli.start(*arguments)
    wait_for(cli, process, has_record(cli, '"kind": "train", "step": 3'))
    psutil.Process(process.pid).send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    step = read_state((cli.folder / "run/checkpoints/last").resolve()).step
    assert 3 <= step < 9
    sentence = f"{name}: the run ends after step {step}, with a checkpoint; {RESUMING} it"
    assert sentence in err
    assert sentence in (cli.folder / "run" / "log.txt").read_text(encoding="utf-8")
    assert f"fangyan: {name}: the run ends after this step, with a checkpoint" in err
    _, err = cli(*arguments)
    assert f"step-{step:06d} at step {step}" in err
    assert cli.losses() == undisturbed.losses()
    assert cli.records() == undisturbed.records()


def test_train_ends_at_once_before_the_first_step(cli):
    process = cli.start(*cli.train_arguments())
    wait_for(cli, process, (cli.folder / "run" / ".lock").exists)
    psutil.Process(process.pid).send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: the run ends; nothing has been trained since its start" in err
    cli.train("train.epochs=1")


def test_train_loses_nothing_where_a_signal_comes_in_an_evaluation(cli, undisturbed):
    """The checkpoint comes before it, and the resumed run evaluates again."""
    arguments = cli.train_arguments("train.checkpoint_every=null", resume="auto")
    process = cli.start(*arguments)
    wait_for(cli, process, (cli.folder / "run/checkpoints/step-000009").exists)
    psutil.Process(process.pid).send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "SIGTERM: the run ends" in err
    state = read_state((cli.folder / "run/checkpoints/last").resolve())
    assert state.step >= 9
    cli(*arguments)
    assert cli.records() == undisturbed.records()


def test_a_second_interrupt_ends_a_run_at_once(cli):
    """The first waits for the step's end, which does not come."""
    process = ForkedCommand(cli.server, cli.folder, cli.train_arguments(), [{}], [hang])
    wait_for(cli, process, (cli.folder / "hangs").exists)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(1.2)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "SIGINT: the run ends after this step, with a checkpoint" in err
    assert "SIGINT again: the run ends at once" in err
    assert read_state((cli.folder / "run/checkpoints/last").resolve()).step == 2


@pytest.mark.ranks
def test_checkpoints_are_written_by_the_clock(cli, free_port):
    arguments = cli.train_arguments("train.checkpoint_every=1s", "train.keep_checkpoints=99")
    environments = of_ranks(2, free_port())
    command = ForkedCommand(cli.server, cli.folder, arguments, environments, [delay, delay])
    _, err = command.communicate(timeout=200)
    assert command.returncode == 0, err
    written = {
        int(path.name[5:]): (path / "state.json").stat().st_mtime_ns / 1e9
        for path in (cli.folder / "run/checkpoints").glob("step-*")
    }
    steps = sorted(written)
    for epoch in (range(1, 10), range(10, 19)):  # of 2.25 s at least
        found = [step for step in steps if step in epoch]
        assert len(found) > 1, steps
        assert found[-1] == epoch[-1]
    # None is written twice: by the clock, a second after the one before, however slow this machine is.
    for before, step in itertools.pairwise(steps):
        assert step % 9 == 0 or written[step] - written[before] > 0.99, written


@pytest.mark.parametrize(
    ("is_terminal", "number", "code"), [(True, signal.SIGHUP, 0), (False, signal.SIGINT, 130)]
)
def test_train_saves_where_its_output_ends_too(cli, is_terminal, number, code):
    """A terminal that closes, and the ``tee`` of a pipe that the same Ctrl-C ends."""
    if is_terminal:
        reader, terminal = os.openpty()
        path = os.ttyname(terminal)
    else:
        path = str(cli.folder / "pipe")
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, False)
    arguments = cli.train_arguments("train.checkpoint_every=null")
    process = cli.server.Process(target=forked_command.run, args=(str(cli.folder), arguments, {}, path, path))
    process.start()
    if is_terminal:
        os.close(terminal)
    shown = b""
    while not has_record(cli, '"kind": "train", "step": 3')():
        assert process.is_alive(), shown.decode()
        with suppress(OSError):  # nothing yet
            shown += os.read(reader, 1 << 16)
        time.sleep(0.01)
    os.close(reader)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == code
    assert 3 <= read_state((cli.folder / "run/checkpoints/last").resolve()).step < 9
    assert "with a checkpoint" in (cli.folder / "run/log.txt").read_text(encoding="utf-8")


@pytest.mark.ranks
def test_a_signal_to_one_rank_ends_both_with_a_checkpoint(cli, undisturbed):
    process = cli.start(*cli.train_arguments("train.checkpoint_every=null"), ranks=2)
    wait_for(cli, process, has_record(cli, '"kind": "train", "step": 3'))
    second = process._processes[1].pid
    psutil.Process(second).send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert read_state((cli.folder / "run/checkpoints/last").resolve()).step < 9


@pytest.mark.ranks
def test_the_launchers_end_ends_its_ranks_with_a_checkpoint(cli):
    """DeepSpeed's front process alone is killed: SIGTERM, which it does not pass on either, is less."""
    process = cli.start(
        *cli.train_arguments("train.checkpoint_every=null", "train.epochs=9"), ranks=2, launcher=True
    )
    wait_for(cli, process, has_record(cli, '"kind": "train", "step": 3'))
    ranks = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "fangyan" in child.cmdline() and "deepspeed" not in " ".join(child.cmdline())
    ]
    assert len(ranks) == 2
    process.kill()
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(ranks, timeout=30)
    assert not alive
    assert read_state((cli.folder / "run/checkpoints/last").resolve()).step >= 3


@pytest.mark.ranks
def test_a_killed_rank_is_named_by_the_other(cli):
    process = cli.start(*cli.train_arguments("train.epochs=9"), ranks=2)
    wait_for(cli, process, has_record(cli, '"kind": "train", "step": 3'))
    process._processes[1].kill()
    process._processes[0].join(20)
    assert process._processes[0].exitcode == 1
    _, err = process.communicate(timeout=60)
    assert f"rank 1 on {socket.gethostname()} ended after step" in err
    assert f"{RESUMING} from the last checkpoint" in err
    assert "Traceback" not in err
