"""This machine: its name for a results folder, its caches, and its measured ceilings."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch


def machine_name() -> str:
    """Names the processor that the results hold for, such as ``amd-epyc-avx2-2-cores``.

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
    return len(os.sched_getaffinity(0))


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@cache
def cache_bytes(device: str) -> int:
    """The last cache before memory, as the machine reports it."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).L2_cache_size)
    sizes = [_bytes(path.read_text()) for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("*/size")]
    return max(sizes, default=32 << 20)


def gpu_lost() -> bool:
    """Whether the GPU answers this process no more, as after an access out of bounds."""
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
        flops: by dtype, of a large matrix product.
    """

    bytes_per_second: float
    flops: dict[torch.dtype, float]


def measure_peak_rates() -> PeakRates:
    """Best of several: a ceiling is what nothing has exceeded."""
    where = device()
    elements = 1 << (28 if where == "cuda" else 25)
    source, target = torch.ones(elements, device=where), torch.empty(elements, device=where)
    copy = min(_best(lambda: target.copy_(source)), _best(lambda: source.mul_(1.0)))
    size = 8192 if where == "cuda" else 1536
    halves = (torch.bfloat16, torch.float16) if where == "cuda" else ()
    dtypes = (*halves, torch.float32)
    flops = {}
    for dtype in dtypes:
        left, right = (torch.randn(size, size, device=where).to(dtype) for _ in range(2))
        product = torch.empty_like(left)
        flops[dtype] = 2 * size**3 / _best(lambda: torch.mm(left, right, out=product))  # noqa: B023
    return PeakRates(2 * 4 * elements / copy, flops)


def _best(call: object) -> float:
    assert callable(call)
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
    number, unit = re.fullmatch(r"(\d+)([KMG]?)", text.strip()).groups()  # type: ignore[union-attr]
    return int(number) << {"": 0, "K": 10, "M": 20, "G": 30}[unit]


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
