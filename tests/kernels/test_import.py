"""Importing the package: silent, without bitsandbytes, and everything public is exported."""

import inspect
import subprocess
import sys

import fangyan_kernels
import pytest
import triton_here

if triton_here.INTERPRETED:
    pytest.skip("the interpreter runs Triton's kernels alone", allow_module_level=True)


def python(code):
    """What a fresh process writes, to both streams."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_import_is_silent_and_leaves_bitsandbytes_alone():
    code = "import sys, fangyan_kernels\nassert 'bitsandbytes' not in sys.modules"
    assert python(code) == ""


WITHOUT = """
import sys
sys.modules["bitsandbytes"] = None  # as if it were not installed
from types import SimpleNamespace
import torch
import fangyan_kernels
from fangyan_kernels.lora_linear.base_weights import dequantize

x, a, b = torch.randn(3, 8), torch.randn(2, 8), torch.randn(6, 2)
assert fangyan_kernels.lora_linear(x, torch.randn(6, 8), a, b).shape == (3, 6)
packed = torch.zeros(24, 1, dtype=torch.uint8)
packed.quant_state = SimpleNamespace(
    nested=False, absmax=torch.ones(1), blocksize=64, quant_type="nf4", shape=torch.Size((6, 8)),
    dtype=torch.float32,
)
for refused in (
    lambda: fangyan_kernels.AdamW8bit,
    lambda: fangyan_kernels.lora_linear(x, packed, a, b),
    lambda: fangyan_kernels.lora_linear(x, packed, a, b, impl="reference"),
    lambda: dequantize(packed),
):
    try:
        refused()
    except ModuleNotFoundError as error:
        print(error)
"""


def test_import_without_bitsandbytes_refuses_what_needs_it():
    needs = "needs bitsandbytes, which is not installed; run: pip install bitsandbytes"
    assert python(WITHOUT).splitlines() == [f"an 8-bit optimizer: {needs}", *[f"a 4-bit weight: {needs}"] * 3]


def test_import_bitsandbytes_is_silent_and_restores_the_log_level():
    pytest.importorskip("bitsandbytes")
    code = """
import logging
from fangyan_kernels.optional import import_bitsandbytes

logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
logger.setLevel(logging.INFO)
assert import_bitsandbytes("a test").__name__ == "bitsandbytes"
assert logger.level == logging.INFO
"""
    assert python(code) == ""


MODULES = ("", ".linear_cross_entropy", ".lora_linear", ".optim8bit", ".varlen_attention")


@pytest.mark.parametrize("name", MODULES)
def test_everything_public_is_exported(name):
    if "8bit" in name:
        pytest.importorskip("bitsandbytes")
        from fangyan_kernels import optim8bit  # noqa: F401
    module = sys.modules["fangyan_kernels" + name]
    public = {
        member
        for member, value in vars(module).items()
        if not member.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        # A folder's own; the package exports those of its folders.
        and (value.__module__ == module.__name__ if name else value.__module__.startswith(module.__name__))
    }
    lazy = {"AdEMAMix8bit", "Adam8bit", "AdamW8bit", "Lion8bit"}
    assert public | (lazy if not name else set()) == set(module.__all__)
    assert module.__all__ == sorted(module.__all__)


def test_dir_knows_what_is_exported():
    assert set(fangyan_kernels.__all__) <= set(dir(fangyan_kernels))
