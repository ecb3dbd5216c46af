"""The implementations of linear cross-entropy, for all of its tests."""

import pytest
import torch
import triton_here


@pytest.fixture
def impl(request, monkeypatch):
    """An implementation, where this machine can run it."""
    if "triton" in request.param and triton_here.MISSING:
        pytest.skip(triton_here.MISSING)
    if "triton" not in request.param and triton_here.INTERPRETED:
        pytest.skip("the interpreter runs Triton's kernels alone")
    with triton_here.on_the_cpu(monkeypatch) if "triton" in request.param else torch.enable_grad():
        yield request.param
