"""This machine: its name, its versions, its caches, and the rates that it reaches at its best."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

BENCH = Path(__file__).resolve().parents[2]
ROOT = BENCH.parent

PACKAGES = ("torch", "triton", "transformers", "deepspeed", "bitsandbytes", "peft", "liger-kernel")


def machine_name() -> str:
    """Name the processor that the results hold for, such as ``amd-epyc-avx2-2-cores``.

    Virtual machines call processors of several generations by one name: their vectors tell them apart.
    """
    if torch.cuda.is_available():
        return _slug(torch.cuda.get_device_name())
    found = re.search(r"model name\s*:\s*(.+)", _read("/proc/cpuinfo"))
    model = found[1] if found else os.uname().machine
    model = re.sub(r"\(.*?\)|@.*|\b(CPU|Processor|\d+-Core)\b", "", model)
    vectors = torch.backends.cpu.get_cpu_capability()
    return f"{_slug(model)}-{_slug(vectors)}-{cores()}-cores"


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def device() -> str:
    """Return ``cuda`` where there is a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the version of Python and of every package that is installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def cache_bytes(device: str) -> int:
    """Return the size of the last cache before memory, as the machine reports it."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).L2_cache_size)
    sizes = [
        _bytes(path.read_text(encoding="utf-8"))
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("*/size")
    ]
    return max(sizes, default=32 << 20)


def gpu_lost() -> bool:
    """Return whether the GPU no longer answers this process, as after an access out of bounds."""
    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


@dataclass(frozen=True)
class PeakRates:
    """What this machine reaches at its best, measured at the start of a run.

    Attributes:
        bytes_per_second: of a copy or of scaling in place, whichever is faster, read and write counted
            (a CPU reads what a copy overwrites).
        flops: FLOP/s by dtype, of a large matrix product.
    """

    bytes_per_second: float
    flops: dict[torch.dtype, float]


def measure_peak_rates() -> PeakRates:
    """Measure the peak rates: the best of several repetitions each."""
    where = device()
    elements = 1 << (28 if where == "cuda" else 25)
    source, target = torch.ones(elements, device=where), torch.empty(elements, device=where)
    copy = min(_best(lambda: target.copy_(source)), _best(lambda: source.mul_(1.0)))
    size = 8192 if where == "cuda" else 1536
    halves = (torch.bfloat16, torch.float16) if where == "cuda" else ()
    flops = {dtype: 2 * size**3 / _product_seconds(size, dtype, where) for dtype in (*halves, torch.float32)}
    return PeakRates(2 * 4 * elements / copy, flops)


def _product_seconds(size: int, dtype: torch.dtype, where: str) -> float:
    left, right = (torch.randn(size, size, device=where).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    return _best(lambda: torch.mm(left, right, out=product))


def _best(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(7):
        _synchronize()
        start = time.perf_counter()
        call()
        _synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+)([KMG]?)", text.strip())
    if found is None:
        raise ValueError(f"a cache of {text.strip()}, expected a size such as 512K")
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2]]


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8") if Path(path).exists() else ""


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
