"""The tiles part: other blocks, warps and stages of each Triton kernel, timed beside the present choice."""

from __future__ import annotations

import faulthandler
import gc
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from fangyan_kernels.testing.launches import record_launches

from fangyan_bench.gpu.candidates import Kernel, few_candidates, kernels
from fangyan_bench.gpu.record import Budget, Record, Row
from fangyan_bench.gpu.warm import call_once
from fangyan_bench.harness.machine import gpu_lost
from fangyan_bench.harness.timing import describe_error

COMPILING = 70.0  # seconds in parallel processes, at most: the rest of the part is for timing
TRY = 1.0  # seconds of a candidate: a tenth, but for one that is still to be compiled
HANGING = 20.0  # seconds of a candidate after which the process ends itself


def run(record: Record, seconds: float, dry: bool) -> None:
    """Time the candidates of every kernel until the seconds are over; finished entries are not repeated."""
    budget = Budget(seconds)
    if "compilation" not in record.about:
        record.about["compilation"] = "under way"
        record.write()
        compilation = call_once(_calls, dry, COMPILING)
        # Some ask for more registers or memory than there are: their entries name them.
        record.about["compilation"] = {**compilation, "failed": len(compilation["failed"] or ())}
        record.write()
    measure(_chosen_kernels(dry), record, budget, dry)


def measure(entries: Sequence[Kernel], record: Record, budget: Budget, dry: bool) -> None:
    """Time all candidates of each kernel; whatever one of them raises, the next has its turn."""
    for kernel in entries:
        name = kernel.name
        if record.finished(name):
            continue
        if record.died_timing(name):
            record.put(name, "failed", reason="its process died or hung while its inputs were made")
            continue
        if budget.left < TRY:
            record.put(name, "skipped", reason="no time was left")
            continue
        start = time.monotonic()
        try:
            found = _measure(kernel, record, budget, dry)
            record.put(name, "done", seconds=time.monotonic() - start, **found)
        except ImportError as error:
            record.put(name, "missing", reason=str(error))
        except Exception as error:
            if gpu_lost():  # the next process leaves out the candidate that ran last
                raise
            record.put(name, "failed", reason=describe_error(error))
        gc.collect()
        torch.cuda.empty_cache()


def _measure(kernel: Kernel, record: Record, budget: Budget, dry: bool) -> Row:
    killers = record.killers(kernel.name)
    record.running(kernel.name, None, killers)
    call = kernel.make()
    microseconds: dict[str, float] = {}
    failed = dict(killers)
    for candidate in kernel.candidates:
        if candidate in killers or budget.left < TRY:
            continue
        record.running(kernel.name, candidate, killers)
        if not dry:
            faulthandler.dump_traceback_later(HANGING, exit=True)
        try:
            with _device(dry), kernel.choosing(candidate):
                microseconds[candidate] = _cpu_microseconds(call) if dry else _gpu_microseconds(call)
        except Exception as error:
            if gpu_lost():
                raise
            failed[candidate] = describe_error(error)
        finally:
            faulthandler.cancel_dump_traceback_later()
    not_in_time = len(kernel.candidates) - len(microseconds) - len(failed)
    return {"microseconds": microseconds, "failed": failed, "not_in_time": not_in_time}


def _gpu_microseconds(call: Callable[[], object]) -> float:
    """Return the median of 15 ms of calls, the L2 cache cleared before each."""
    from triton.testing import do_bench

    return 1e3 * float(do_bench(call, warmup=3, rep=15, return_mode="median"))


def _cpu_microseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e6 * (time.perf_counter() - start)


def _device(dry: bool) -> AbstractContextManager[object]:
    """A rehearsal compiles for an H100, which an interpreter would not, and launches nothing."""
    return record_launches() if dry else nullcontext()


def _chosen_kernels(dry: bool) -> list[Kernel]:
    return [few_candidates(kernel) for kernel in kernels(dry)] if dry else kernels(dry)


def _calls(dry: bool) -> dict[str, Callable[[], object]]:
    return {
        f"{kernel.name}, {candidate}": partial(_call, kernel, candidate, dry)
        for kernel in _chosen_kernels(dry)
        for candidate in kernel.candidates
    }


def _call(kernel: Kernel, candidate: str, dry: bool) -> None:
    call = kernel.make()
    with _device(dry), kernel.choosing(candidate):
        call()
