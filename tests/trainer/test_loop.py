"""What the loop says about steps."""

import torch
from fangyan.checkpoint import State
from fangyan.engine import start_distributed
from fangyan.loop import _Losses
from fangyan.report import Reporter


def test_weights_without_a_gradient_are_said(tmp_path):
    """By step, of all ranks together, when losses are read."""
    start_distributed()
    state = State(step=6)
    with Reporter(tmp_path, active=True) as report:
        losses = _Losses(report, state)
        losses.add(torch.tensor(2.0), 1e-3, left=0)
        state.step = 7
        losses.add(torch.tensor(4.0), 1e-3, left=1234)
        assert losses.flush() == 3.0
    log = (tmp_path / "log.txt").read_text()
    assert "step 7: 1,234 weights have no finite gradient and stay as they are" in log
    assert "step 6" not in log
