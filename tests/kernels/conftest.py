"""The implementations of an op, where this machine can run them."""

import pytest
import torch
import triton_here


@pytest.fixture
def impl(request, monkeypatch):
    """An implementation; Triton's runs on a GPU or in an interpreter, which runs nothing else."""
    if "triton" in request.param and triton_here.MISSING:
        pytest.skip(triton_here.MISSING)
    if "triton" not in request.param and triton_here.INTERPRETED:
        pytest.skip("the interpreter runs Triton's kernels alone")
    with triton_here.on_the_cpu(monkeypatch) if "triton" in request.param else torch.enable_grad():
        yield request.param
