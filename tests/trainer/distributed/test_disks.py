"""Nodes that do not see the same disk: each has whole checkpoints, and gets those that it lacks."""

import re
import shutil
from functools import partial

import pytest
from fangyan.errors import RESUMING
from fangyan.training.checkpoint_files import read_state, verify
from forked_command import ForkedCommand, of_ranks
from own_disk import mount, why_not
from small_disk import fill, mounted
from spread_rank import spread

pytestmark = [pytest.mark.slow, pytest.mark.ranks]


@pytest.fixture
def nodes(cli, free_port):
    """Two nodes of one rank; a function runs the command on both, each with a disk of its own for runs."""
    reason = why_not(cli.server)
    if reason:
        pytest.skip(reason)
    target = cli.folder / "runs"
    disks = [cli.folder / f"disk-{rank}" for rank in range(2)]
    for folder in (target, *disks):
        folder.mkdir()
    (cli.folder / "few.conll").write_text("我\tB-r\n食\tB-v\n飯\tB-n\n\n" * 12, encoding="utf-8")
    data = ("data.format=conll", "data.train=few.conll", "data.dev=few.conll", "train.batch_tokens=15")

    def run(*overrides, resume=None, ranks=2):
        arguments = cli.train_arguments(*data, *overrides, resume=resume, run="runs/run")
        environments = [own | {"LOCAL_RANK": "0", "LOCAL_SIZE": "1"} for own in of_ranks(ranks, free_port())]
        before = [partial(mount, disk, target) for disk in disks[2 - ranks :]]
        command = ForkedCommand(cli.server, cli.folder, arguments, environments, before)
        _, err = command.communicate(timeout=200)
        assert command.returncode == 0, err
        return err

    return run, [disk / "run" for disk in disks]


def losses(cli, folder):
    return cli.losses(folder.relative_to(cli.folder))


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_empty_node_and_a_damaged_one_get_what_they_lack(cli, nodes):
    run, (first, second) = nodes
    run("engine.zero_stage=3")
    whole = losses(cli, first)
    assert len(whole) >= 8
    assert files(first / "checkpoints") == files(second / "checkpoints")
    last = read_state((first / "checkpoints/last").resolve()).step
    before = f"checkpoints/step-{last - 2:06d}"
    assert verify(second / before) is None
    shutil.rmtree(first / f"checkpoints/step-{last:06d}")
    (second / f"checkpoints/step-{last:06d}/state.json").write_text("{}", encoding="utf-8")
    file = next((first / before).glob("*model_states.pt"))
    content = bytearray(file.read_bytes())
    content[5000] ^= 1
    file.write_bytes(content)
    err = run("engine.zero_stage=3", resume="auto")
    assert "lacks a checkpoint, which" in err
    assert "model_states.pt is not as it was written" in err
    assert losses(cli, first) == whole
    assert files(first / "checkpoints") == files(second / "checkpoints")
    shutil.rmtree(second)
    err = run("engine.zero_stage=3", resume="runs/run/checkpoints/last")
    assert "lacks a checkpoint, which" in err
    for name in ("last", "best"):
        assert files((first / "checkpoints" / name).resolve()) == files(
            (second / "checkpoints" / name).resolve()
        )
    assert (second / "splits/dev.jsonl").exists()


def spread_on_two_ranks(folders, tmp_path, server, free_port):
    """Send files of the first folder to the second; return what each rank says."""
    port = free_port()
    files = [tmp_path / f"{rank}.txt" for rank in range(2)]
    processes = [
        server.Process(target=spread, args=(rank, port, str(folders[rank]), str(files[rank])))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    return [file.read_text(encoding="utf-8") for file in files]


@pytest.mark.parametrize("lost", ["source", "target"])
def test_spread_of_a_file_that_cannot_be_opened(lost, tmp_path, server, free_port):
    """Every rank says so in the end, and the files after it arrive whole."""
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        folder.mkdir()
    (folders[0] / "a").write_bytes(b"a" * 1000)
    (folders[0] / "b").write_bytes(b"b" * 900)
    if lost == "source":
        (folders[0] / "a").unlink()
    else:
        (folders[1] / "a").mkdir()
    reason = "No such file" if lost == "source" else "Is a directory"
    for said in spread_on_two_ranks(folders, tmp_path, server, free_port):
        assert f"{folders[lost == 'target']}/a: {reason}" in said
    assert (folders[1] / "b").read_bytes() == b"b" * 900


def test_spread_to_a_disk_that_is_full(tmp_path, server, free_port):
    """Which fills up between the files that a rank wrote itself and those that it is sent."""
    folder = tmp_path / "0"
    folder.mkdir()
    (folder / "a").write_bytes(b"a" * 100_000)
    (folder / "b").write_bytes(b"b" * 100_000)
    with mounted(tmp_path / "1", 1 << 20) as full:
        fill(full, leave=150_000)
        said = spread_on_two_ranks([folder, full], tmp_path, server, free_port)
    expected = rf"b cannot be written \(No space left on device\); 0\.\d{{3}} GB are free .* room, {RESUMING}"
    for sentence in said:
        assert re.search(expected, sentence)


def test_the_node_that_is_left_resumes_alone(cli, nodes):
    """What is left of ZeRO 3 is whole, and its steps keep their two micro-batches."""
    run, (first, second) = nodes
    run("engine.zero_stage=3", "train.epochs=1")
    whole = losses(cli, first)
    last = read_state((second / "checkpoints/last").resolve()).step
    shutil.rmtree(second / f"checkpoints/step-{last:06d}")
    shutil.rmtree(first)
    err = run("engine.zero_stage=3", "train.epochs=1", resume="auto", ranks=1)
    assert "is of 2 ranks: its weights and optimizer states were resharded for 1" in err
    found = [loss for _, loss in losses(cli, second)]
    assert found == pytest.approx([loss for _, loss in whole[-len(found) :]], rel=2e-6)
