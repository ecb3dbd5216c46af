"""Peak memory of a call: the allocator's on a GPU, a fresh process' high-water mark on the CPU."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import re
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from fangyan_bench.harness.check import upstream
from fangyan_bench.harness.op import Contender, Inputs, Op, Shape, draw, leaves

MINUTES = 5


def peak_memory(op: Op, shape: Shape, contender: Contender) -> int:
    """Bytes that forward and backward take at most, beyond the inputs.

    Of an op without a backward: preparing and calling it, because what such an op keeps between
    calls, such as an optimizer's states, is what it is chosen by.

    Raises:
        RuntimeError: if the measuring process died.
    """
    if shape.device == "cuda":
        return _on_cuda(op, shape, contender)
    # The server has imported torch but never started a thread: a fork of it is safe, and quick.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fangyan.models.packed", "peft"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, op.name, str(shape), contender.name))
    process.start()
    sender.close()
    try:
        if not receiver.poll(60 * MINUTES):
            raise RuntimeError(f"{contender.name}: no answer on its memory in {MINUTES} minutes")
        return int(receiver.recv())
    except EOFError:
        raise RuntimeError(f"{contender.name}: the process that measures its memory died") from None
    finally:
        process.kill()
        process.join()


def _measure(sender: Connection, op_name: str, shape_text: str, contender_name: str) -> None:
    from fangyan_bench.harness.registry import op_called, shape_called

    op = op_called(op_name)
    shape, contender = shape_called(op, shape_text), op.contender(contender_name)
    inputs = draw(op, shape, 0)
    # Libraries load and threads start in the first call: neither is the op's own memory.
    run_once(op, shape, contender, inputs)
    before = settle()
    run_once(op, shape, contender, inputs)
    sender.send(high_water_mark() - before)


def run_once(op: Op, shape: Shape, contender: Contender, inputs: Inputs) -> None:
    for leaf in leaves(inputs):
        leaf.grad = None
    value = contender.prepare(shape, inputs)()
    if "backward" in op.passes:
        value.backward(upstream(value))
        for leaf in leaves(inputs):
            leaf.grad = None


def _on_cuda(op: Op, shape: Shape, contender: Contender) -> int:
    inputs = draw(op, shape, 0)
    run_once(op, shape, contender, inputs)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run_once(op, shape, contender, inputs)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def settle() -> int:
    """Gives freed memory back, starts a new high-water mark, and gives the bytes in use."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def high_water_mark() -> int:
    """The most bytes in use since :func:`settle`."""
    return _status("VmHWM")


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", text)[1]) * 1024  # type: ignore[index]
