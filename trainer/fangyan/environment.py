"""What this machine has, for a bug report."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import torch

_PACKAGES = (
    *("fangyan", "fangyan-kernels", "torch", "triton"),
    *("transformers", "tokenizers", "deepspeed", "bitsandbytes"),
)


def describe() -> dict[str, str]:
    """Return processor, GPUs and package versions, by name."""
    found = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": f"{_processor()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
    }
    found |= versions()
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        memory = properties.total_memory / 2**30
        found[f"GPU {i}"] = f"{properties.name}, {memory:.0f} GiB, sm_{properties.major}{properties.minor}"
    if not torch.cuda.is_available():
        found["GPU"] = "none"
    return found


def versions() -> dict[str, str]:
    """Return the version of each package that computes, by name."""
    return {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
