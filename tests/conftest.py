"""No test reaches a hub: what is not on this machine is an error. No test fails for being slow."""

import gc
import os

import pytest
import torch
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
# Deterministic algorithms, with which PyTorch fills new buffers with NaN, ask for it before cuBLAS is used.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


# What is imported and collected stays: a garbage collector that goes through it again and again took 5 of the
# 13 seconds in which `pytest --collect-only` ends.
gc.set_threshold(5_000)


def pytest_collection_finish():
    gc.freeze()


def pytest_addoption(parser):
    parser.addoption(
        "--inputs",
        type=int,
        default=300,
        help="How many malformed inputs tests/trainer/fuzz tries.",
    )


@pytest.fixture(autouse=True)
def _seed():
    """Start every test at one seed: what it draws does not depend on the tests that ran before it."""
    torch.manual_seed(0)
