"""Checkpoints that cannot be written, and errors that are not the disk's."""

import pytest
import torch
from fangyan.distributed.process_group import start_distributed
from fangyan.errors import UserError
from fangyan.training.checkpoint import Checkpoints
from fangyan.training.checkpoint_files import SafeCheckpointEngine
from fangyan.training.state import State


class Engine:
    """What a checkpoint needs of an engine, which writes somewhere else."""

    def __init__(self, content, path):
        self.checkpoint_engine = SafeCheckpointEngine()
        self.content, self.path = content, path

    def save_checkpoint(self, *_, **__):
        self.checkpoint_engine.save(self.content, self.path)


@pytest.mark.parametrize("numbers", [3, 3_000_000], ids=["at the end", "on the way"])
def test_save_reports_a_full_disk(tmp_path, numbers):
    start_distributed()
    engine = Engine({"weight": torch.zeros(numbers)}, "/dev/full")
    with pytest.raises(UserError, match="the checkpoint cannot be written by rank 0 on .* GB are free there"):
        Checkpoints(tmp_path, 1).save(engine, State(), {})
    assert list(tmp_path.iterdir()) == []


class Broken:
    """Content that cannot be copied from where it is."""

    def __reduce__(self):
        raise RuntimeError("CUDA error: device-side assert")


def test_save_does_not_call_every_error_the_disks(tmp_path):
    start_distributed()
    engine = Engine({"weight": Broken()}, str(tmp_path / "file"))
    with pytest.raises(RuntimeError, match="device-side assert"):
        Checkpoints(tmp_path, 1).save(engine, State(), {})


@pytest.mark.slow
@pytest.mark.ranks
def test_every_rank_ends_where_the_run_folder_is_not_a_run(cli):
    (cli.folder / "run").mkdir()
    (cli.folder / "run" / "thesis.txt").write_text("x", encoding="utf-8")
    _, err = cli.train(code=2, ranks=2)
    assert "holds files but no run" in err
    assert len(err.strip().splitlines()) == 1
