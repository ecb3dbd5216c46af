"""What the ops launch on a T4 or an RTX 20: compiled for it, with its 64 KB of shared memory and no spills.

The kernels are found by calling the ops: tiles, and the choice between kernels, depend on the card.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton_here
from fangyan_kernels import launching, linear_cross_entropy, lora_linear
from fangyan_kernels.lora_linear import triton_launches
from fangyan_kernels.testing.launches import record_launches
from fangyan_kernels.testing.offline import SHARED_LIMIT
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

if triton_here.INTERPRETED:
    pytest.skip("an interpreter compiles nothing", allow_module_level=True)


@pytest.fixture
def binaries(monkeypatch):
    """Machine code by kernel; where one needs more shared memory than a T4 has, Triton raises."""
    loaded = {}

    def load(name, binary, *_):
        loaded.setdefault(name, []).append(binary)
        return 0, 0, 0, 0, 1024

    module = sys.modules[linear_cross_entropy.__module__]
    monkeypatch.setattr(module, "has_tensor_cores", lambda _: False)
    monkeypatch.setattr(triton_launches, "has_tensor_cores", lambda _: False)
    monkeypatch.setattr(launching, "_compiled", {})
    with record_launches():
        fake = driver.active
        monkeypatch.setattr(fake, "get_current_device", lambda: 75)
        monkeypatch.setattr(fake, "get_current_target", lambda: GPUTarget("cuda", 75, 32))
        properties = {"max_shared_mem": SHARED_LIMIT["sm_75"], "multiprocessor_count": 40}
        monkeypatch.setattr(fake.utils, "get_device_properties", lambda _: properties)
        monkeypatch.setattr(fake.utils, "load_binary", load)
        yield loaded


def check(binaries, expected, folder):
    """No thread has a stack: that is where registers would be spilled."""
    assert expected <= set(binaries), set(binaries)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    for name, variants in binaries.items():
        for binary in variants:
            assert binary[48] == 75, "of another architecture, by the flags of its ELF file"
            file = folder / "kernel.cubin"
            file.write_bytes(binary)
            command = [tool, "-res-usage", file]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            assert re.findall(r"(?:STACK|LOCAL):(\d+)", said) == ["0", "0"], f"{name}: {said}"


def layer(rank, dtype):
    sizes = ((20, 96), (rank, 96), (80, rank))
    leaves = [torch.randn(size, dtype=dtype, requires_grad=True) for size in sizes]
    return *leaves, torch.randn(80, 96, dtype=dtype)


@pytest.mark.slow
def test_ops_on_turing(binaries, tmp_path):
    """Heads go the vocabulary's way, whose products are cuBLAS's: in Triton's no tensor core would work."""
    for dtype in (torch.float16, torch.float32):
        input = torch.randn(20, 64, dtype=dtype, requires_grad=True)
        for classes in (7, 5000):
            weight = torch.randn(classes, 64, dtype=dtype, requires_grad=True)
            target = torch.randint(classes, (20,))
            linear_cross_entropy(input, weight, target, impl="triton").backward()
    for dtype, ranks in ((torch.float16, (8, 32, 64, 256)), (torch.float32, (8, 256))):
        for rank in ranks:
            input, a, b, weight = layer(rank, dtype)
            lora_linear(input, weight, a, b, dropout=0.1, impl="triton").sum().backward()
    assert not [name for name in binaries if name.startswith("small_vocab")]
    check(binaries, {"shrink", "expand", "outer_product", "reduce_partials"}, tmp_path)


@pytest.mark.slow
def test_merge_on_turing(binaries, tmp_path):
    bnb = pytest.importorskip("bitsandbytes")
    input, a, b, weight = layer(16, torch.float16)
    for nested in (False, True):
        packed = bnb.nn.Params4bit(weight, quant_type="nf4", compress_statistics=nested, blocksize=64).to(
            "cpu"
        )
        lora_linear(input, packed, a, b, impl="triton").sum().backward()
    check(binaries, {"merge"}, tmp_path)
