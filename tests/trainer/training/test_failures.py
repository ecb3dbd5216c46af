"""What one rank decides for all, and errors that are not the disk's."""

import pytest
from fangyan.errors import UserError
from fangyan.training.checkpoint import Checkpoints, State
from fangyan.training.distributed import on_rank_zero, start_distributed


class BrokenEngine:
    """An engine whose checkpoint fails."""

    def __init__(self, error):
        self.error = error

    def save_checkpoint(self, *_, **__):
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    ],
    ids=["OSError", "the zip writer's"],
)
def test_save_reports_a_full_disk(tmp_path, error):
    start_distributed()
    with pytest.raises(UserError, match="the checkpoint cannot be written .* GB are free"):
        Checkpoints(tmp_path, 1).save(BrokenEngine(error), State(), {})


def test_save_does_not_call_every_error_the_disks(tmp_path):
    start_distributed()
    with pytest.raises(RuntimeError, match="device-side assert"):
        Checkpoints(tmp_path, 1).save(
            BrokenEngine(RuntimeError("CUDA error: device-side assert")), State(), {}
        )


def test_on_rank_zero_returns_and_raises():
    start_distributed()
    assert on_rank_zero(lambda: 3) == 3

    def mistaken():
        raise UserError("a mistake")

    with pytest.raises(UserError, match="a mistake"):
        on_rank_zero(mistaken)


@pytest.mark.slow
@pytest.mark.ranks
def test_every_rank_ends_where_the_run_folder_is_not_a_run(cli):
    (cli.folder / "run").mkdir()
    (cli.folder / "run" / "thesis.txt").write_text("x", encoding="utf-8")
    _, err = cli.train(code=2, ranks=2)
    assert "holds files but no run" in err
    assert len(err.strip().splitlines()) == 1
