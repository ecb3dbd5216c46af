"""Where this process computes, and how much memory it uses there."""

from __future__ import annotations

import ctypes
import logging
import os
from pathlib import Path

import psutil
import torch

if not torch.cuda.is_available():
    # DeepSpeed guesses its device where it is imported, which PEFT does too, and warns of a guess that is
    # no GPU.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

# PEFT imports bitsandbytes, which warns on processors with AVX512-BF16 that the package "kernels" is
# missing, with which it would multiply by 4-bit weights itself.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "gemm_4bit_forward" not in str(record.msg)
)


def on_gpu() -> bool:
    """Return whether this process computes on a GPU."""
    return torch.cuda.is_available()


def device() -> torch.device:
    """Return where this rank computes."""
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu() else torch.device("cpu")


def memory_in_use() -> int:
    """Return bytes: allocated on a GPU, resident on the CPU."""
    if on_gpu():
        return torch.cuda.memory_allocated()
    resident: int = psutil.Process().memory_info().rss
    return resident


def peak_memory() -> int:
    """Return bytes since the last :func:`reset_peak_memory`: the allocator's peak, or the process' own."""
    if on_gpu():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def reset_peak_memory() -> None:
    """Begin to measure a new peak."""
    if on_gpu():
        torch.cuda.reset_peak_memory_stats()
    else:
        # What was freed goes back to the system first: otherwise new tensors would fill it unseen.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): the high-water mark
