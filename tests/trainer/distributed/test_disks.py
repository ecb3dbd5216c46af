"""Nodes that do not see the same disk: each has whole checkpoints, and gets those that it lacks."""

import shutil
from functools import partial

import pytest
from fangyan.training.checkpoint_files import read_state, verify
from forked_command import ForkedCommand, of_ranks
from own_disk import mount, why_not

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
        out, err = command.communicate(timeout=200)
        assert command.returncode == 0, err
        return out

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
    for node in (first, second):
        shutil.rmtree(node / f"checkpoints/step-{last:06d}")
    file = next((first / before).glob("*model_states.pt"))
    content = bytearray(file.read_bytes())
    content[5000] ^= 1
    file.write_bytes(content)
    out = run("engine.zero_stage=3", resume="auto")
    assert "lacks a checkpoint, which" in out
    assert "model_states.pt is not as it was written" in out
    assert losses(cli, first) == whole
    assert files(first / "checkpoints") == files(second / "checkpoints")
    shutil.rmtree(second)
    out = run("engine.zero_stage=3", resume="auto")
    assert "lacks a checkpoint, which" in out
    for name in ("last", "best"):
        assert files((first / "checkpoints" / name).resolve()) == files(
            (second / "checkpoints" / name).resolve()
        )
    assert (second / "splits/dev.jsonl").exists()


def test_the_node_that_is_left_resumes_alone(cli, nodes):
    """What is left of ZeRO 3 is whole, and its steps keep their two micro-batches."""
    run, (first, second) = nodes
    run("engine.zero_stage=3", "train.epochs=1")
    whole = losses(cli, first)
    last = read_state((second / "checkpoints/last").resolve()).step
    shutil.rmtree(second / f"checkpoints/step-{last:06d}")
    shutil.rmtree(first)
    out = run("engine.zero_stage=3", "train.epochs=1", resume="auto", ranks=1)
    assert "is of 2 ranks: its weights and optimizer states were resharded for 1" in out
    found = [loss for _, loss in losses(cli, second)]
    assert found == pytest.approx([loss for _, loss in whole[-len(found) :]], rel=2e-6)
