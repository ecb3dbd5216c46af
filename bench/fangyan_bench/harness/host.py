"""The host's time for a call of a GPU op, with nothing launched.

Triton's own code runs up to the driver (:mod:`fangyan_kernels.testing.launches`). Products by PyTorch are
computed, where sizes are small in a few microseconds each, about as long as cuBLAS takes to launch. What is
left out is CUDA's own launch, 2 to 4 us per kernel.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def host_seconds(call: Callable[[], Any], rounds: int = 15, calls: int = 60) -> float:
    """Return the median over rounds of the seconds that one call takes, the first calls aside."""
    for _ in range(5):
        call()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        seconds.append((time.perf_counter() - start) / calls)
    return statistics.median(seconds)
