"""Peak memory of a call: the allocator's on a GPU, a fresh process' high-water mark on the CPU."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import re
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from fangyan_bench.harness.check import upstream_gradient
from fangyan_bench.harness.op import Implementation, Inputs, Op, Shape, leaves, make_inputs

MINUTES = 5


def peak_memory(op: Op, shape: Shape, implementation: Implementation) -> int:
    """Bytes that forward and backward take at most, beyond the inputs.

    Of an op without a backward: preparing and calling it, because what such an op keeps between
    calls, such as an optimizer's states, is what it is chosen by.

    Raises:
        RuntimeError: if the measuring process died.
    """
    if shape.device == "cuda":
        return _on_cuda(op, shape, implementation)
    # The server has imported torch but never started a thread: a fork of it is safe, and quick.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fangyan.models.packed", "peft"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, op.name, str(shape), implementation.name))
    process.start()
    sender.close()
    try:
        if not receiver.poll(60 * MINUTES):
            raise RuntimeError(f"{implementation.name}: no answer on its memory in {MINUTES} minutes")
        return int(receiver.recv())
    except EOFError:
        raise RuntimeError(f"{implementation.name}: the process that measures its memory died") from None
    finally:
        process.kill()
        process.join()


def _measure(sender: Connection, op_name: str, shape_text: str, implementation_name: str) -> None:
    from fangyan_bench.harness.registry import find_op, find_shape

    op = find_op(op_name)
    shape, implementation = find_shape(op, shape_text), op.implementation(implementation_name)
    inputs = make_inputs(op, shape, 0)
    # Libraries load and threads start in the first call: neither is the op's own memory.
    run_once(op, shape, implementation, inputs)
    before = reset_peak()
    run_once(op, shape, implementation, inputs)
    sender.send(high_water_mark() - before)


def run_once(op: Op, shape: Shape, implementation: Implementation, inputs: Inputs) -> None:
    for leaf in leaves(inputs):
        leaf.grad = None
    value = implementation.prepare(shape, inputs)()
    if "backward" in op.passes:
        value.backward(upstream_gradient(value))
        for leaf in leaves(inputs):
            leaf.grad = None


def _on_cuda(op: Op, shape: Shape, implementation: Implementation) -> int:
    inputs = make_inputs(op, shape, 0)
    run_once(op, shape, implementation, inputs)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run_once(op, shape, implementation, inputs)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def reset_peak() -> int:
    """Gives freed memory back, starts a new high-water mark, and gives the bytes in use."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def high_water_mark() -> int:
    """The most bytes in use since :func:`reset_peak`."""
    return _status("VmHWM")


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", text)[1]) * 1024  # type: ignore[index]
