"""Compiles what a run needs, in parallel processes, before anything is timed: the caches are on disk."""

from __future__ import annotations

import multiprocessing
import os
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any

from fangyan_bench.gpu.entries import DRY_ENTRIES, ENTRIES, Entry

# They call libraries that are compiled already.
COMPILED_ALREADY = (
    "eager",
    "products alone",
    "frozen linear",
    "frozen linear, plain weight",
    "PEFT",
    "addmm",
)

PROCESSES = 12  # half a gigabyte of the card's memory each

Task = tuple[Entry, str]
Calls = Callable[[bool], Mapping[str, Callable[[], object]]]  # by name, of a rehearsal or of a run


def tasks(entries: Sequence[Entry]) -> list[Task]:
    """Return every implementation with something to compile, in the entries' order."""
    names = {str(entry): (*entry.names, *(c.name for c in entry.more)) for entry in entries}
    return [(entry, name) for entry in entries for name in names[str(entry)] if name not in COMPILED_ALREADY]


def warm_up(dry: bool, seconds: float) -> dict[str, Any]:
    """Call every implementation once, as :func:`call_once`."""
    return call_once(_calls, dry, seconds)


def _calls(dry: bool) -> dict[str, Callable[[], object]]:
    return {f"{e}, {name}": partial(_call, e, name) for e, name in tasks(DRY_ENTRIES if dry else ENTRIES)}


def call_once(calls: Calls, dry: bool, seconds: float) -> dict[str, Any]:
    """Make every call once; return how long it took, and what failed or was not done in time.

    Each process has every n-th call: one that dies takes no other's with it.

    Args:
        calls: returns the calls, here and in each process: a module's function.
        dry: whether it is a rehearsal, in one process.
        seconds: until calls that are left are given up.
    """
    start = time.monotonic()
    context = multiprocessing.get_context("spawn")
    count = 1 if dry else min(PROCESSES, len(os.sched_getaffinity(0)))
    names = list(calls(dry))
    answers: Any = context.Queue()
    workers = [
        context.Process(target=_work, args=(calls, dry, number, count, answers), daemon=True)
        for number in range(count)
    ]
    for worker in workers:
        worker.start()
    done: dict[int, str | None] = {}
    while len(done) < len(names) and time.monotonic() - start < seconds:
        with suppress(queue.Empty):
            number, error = answers.get(timeout=0.2)
            done[number] = error
            continue
        if not any(worker.is_alive() for worker in workers) and answers.empty():
            break
    for worker in workers:
        worker.kill()
        worker.join(1.0)  # a driver may keep one whose kernel hangs
    failed = {names[number]: error for number, error in done.items() if error}
    return {
        "seconds": round(time.monotonic() - start, 1),
        "processes": count,
        "compiled": len(done) - len(failed),
        "not in time": len(names) - len(done),
        "failed": failed or None,
    }


def _work(calls: Calls, dry: bool, first: int, step: int, answers: Any) -> None:
    import torch

    from fangyan_bench.harness.timing import describe_error

    for number, call in islice(enumerate(calls(dry).values()), first, None, step):
        try:
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            answers.put((number, None))
        except Exception as error:
            answers.put((number, describe_error(error)))


def _call(entry: Entry, name: str) -> None:
    """Call forward and backward at the sizes that are checked, and at those that are timed."""
    from fangyan_bench.harness.memory import run_once
    from fangyan_bench.harness.op import make_inputs
    from fangyan_bench.harness.timing import reset_compiled
    from fangyan_bench.registry import find_op

    op = find_op(entry.op)
    implementation = next(c for c in entry.implementations(op) if c.name == name)
    if implementation.missing(entry.shape):
        return
    reset_compiled()
    for shape in (op.shape_to_check(entry.shape), entry.shape):
        run_once(op, shape, implementation, make_inputs(op, shape, 0))
