"""What a run says of its steps."""

import pytest
import torch
from fangyan.distributed.process_group import start_distributed
from fangyan.errors import UserError
from fangyan.training.logger import Logger, StepLog
from fangyan.training.state import State


def test_step_log_says_skipped_parameters_once_per_step(tmp_path):
    """By step, of all ranks together, when losses are read."""
    start_distributed()
    with Logger(tmp_path, active=True) as logger:
        log = StepLog(logger)
        log.add(6, 0, torch.tensor(2.0), 1e-3, num_skipped=0)
        log.add(7, 0, torch.tensor(4.0), 1e-3, num_skipped=1234)
        assert log.flush() == 3.0
        log.add(8, 0, torch.tensor(5.0), 1e-3, num_skipped=0)
        assert log.flush() == 5.0
    lines = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert lines == ["step 7: elements skipped, whose gradient is not finite: 1,234"]


def test_step_log_of_a_loss_that_is_not_finite(tmp_path):
    start_distributed()
    with Logger(tmp_path, active=True) as logger:
        log = StepLog(logger)
        log.add(6, 0, torch.tensor(2.0), 1e-3, num_skipped=0)
        log.add(7, 0, torch.tensor(float("inf")), 1e-3, num_skipped=0)
        with pytest.raises(UserError, match="optimizer.lr: the loss is inf at step 7 with a learning rate"):
            log.flush()
    records = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert records == ['{"kind": "train", "step": 6, "epoch": 0, "loss": 2.0, "lr": 0.001}']


def test_logger_resumed_drops_later_records(tmp_path):
    """And an evaluation after the checkpoint, what is damaged, and a last line that a kill has cut short."""
    kept = [
        '{"kind": "evaluation", "step": 0, "epoch": 0, "split": "dev"}',
        '{"kind": "train", "step": 1, "epoch": 0}',
    ]
    dropped = [
        '{"kind": "evaluation", "step": 1, "epoch": 1, "split": "dev"}',
        '{"kind": "evaluation", "step": 1, "epoch": 0, "split": "dev-best"}',
        "5",
        '{"kind": "train", "step": 2, "epoch": 0}',
        '{"kind": "tra',
    ]
    lines = kept[:1] + dropped[:3] + kept[1:] + dropped[3:]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with Logger(tmp_path, active=True, resume=State(step=1)):
        pass
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines == kept
    assert "1 damaged line is dropped" in (tmp_path / "log.txt").read_text(encoding="utf-8")
