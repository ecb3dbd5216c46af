"""One run at a time in a folder."""

import os
import time

import pytest
from fangyan.errors import UserError
from fangyan.training.run_lock import LOCK, RunLock


def hold(folder, ready):
    RunLock(folder)
    ready.touch()
    time.sleep(60)


@pytest.mark.slow
def test_run_lock_is_held_until_its_process_is_killed(tmp_path, server):
    folder, ready = tmp_path / "run", tmp_path / "ready"
    holder = server.Process(target=hold, args=(folder, ready))
    holder.start()
    while not ready.exists():
        time.sleep(0.01)
    with pytest.raises(UserError, match=f"run_dir: .*run is in use by process {holder.pid} on .*; expected"):
        RunLock(folder)
    holder.kill()
    holder.join()
    assert (folder / LOCK).exists()
    RunLock(folder).release()
    assert not folder.exists()


def test_run_lock_keeps_a_folder_with_files(tmp_path):
    lock = RunLock(tmp_path / "run")
    (tmp_path / "run" / "log.txt").touch()
    lock.release()
    assert os.listdir(tmp_path / "run") == ["log.txt"]


def test_run_lock_of_a_folder_that_was_moved(tmp_path, monkeypatch):
    """Between opening its lock and taking it, the run that held it has been moved aside."""
    folder = tmp_path / "run"
    flock = os.open

    def open_and_move(path, *arguments):
        descriptor = flock(path, *arguments)
        folder.rename(tmp_path / "run.1")
        return descriptor

    monkeypatch.setattr(os, "open", open_and_move)
    with pytest.raises(UserError, match="in use by another run that has just begun"):
        RunLock(folder)


@pytest.mark.slow
def test_train_refuses_a_folder_in_use(cli):
    """The first run goes on as if nothing had been."""
    cli.train("train.epochs=1", run="whole")
    first = cli.start(*cli.train_arguments("train.epochs=1"))
    metrics = cli.folder / "run" / "metrics.jsonl"
    while not (metrics.exists() and '"train"' in metrics.read_text(encoding="utf-8")):
        time.sleep(0.05)
        assert first.poll() is None
    for resume in (None, "auto"):
        _, err = cli.train("train.epochs=1", resume=resume, code=2)
        assert f"is in use by process {first.pid} on" in err
        assert len(err.strip().splitlines()) == 1
    _, err = first.communicate(timeout=200)
    assert first.returncode == 0, err
    assert cli.losses() == cli.losses("whole")
    assert not (cli.folder / "run" / LOCK).exists()
