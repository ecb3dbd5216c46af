"""Peak memory of a call: the allocator's on a GPU, a fresh process's high-water mark on the CPU."""

from __future__ import annotations

import ctypes
import gc
import importlib
import multiprocessing
import re
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from fangyan_bench.harness.check import upstream_gradient
from fangyan_bench.harness.op import Implementation, Inputs, Op, Shape, leaves, make_inputs

MINUTES = 5  # until a process that measures is given up
# What implementations import: the process that all others are forked from has what this one has.
PRELOADED = ("torch", "fangyan_bench.trainer_access", "peft")


def peak_memory(op: Op, shape: Shape, implementation: Implementation) -> int:
    """Measure the bytes that a forward and backward allocate at most, beyond the inputs.

    An op without a backward is measured from its preparation on: what it keeps between calls, such as an
    optimizer's states, is what it is chosen by.

    Raises:
        RuntimeError: if the measuring process died.
    """
    if shape.device == "cuda":
        return _on_cuda(op, shape, implementation)
    # The server has imported torch but never started a thread: a fork of it is safe, and quick.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([name for name in PRELOADED if name in sys.modules])
    receiver, sender = context.Pipe(duplex=False)
    arguments = (sender, op.module, str(shape), implementation.name)
    process = context.Process(target=_measure, args=arguments)
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


def _measure(sender: Connection, module: str, shape_text: str, implementation_name: str) -> None:
    op: Op = importlib.import_module(module).OP
    shape, implementation = op.shape(shape_text), op.implementation(implementation_name)
    inputs = make_inputs(op, shape, 0)
    # Libraries load and threads start in the first call: neither is the op's own memory.
    run_once(op, shape, implementation, inputs)
    before = reset_peak()
    run_once(op, shape, implementation, inputs)
    sender.send(high_water_mark() - before)


def run_once(op: Op, shape: Shape, implementation: Implementation, inputs: Inputs) -> None:
    """Prepare and call an implementation, and differentiate it if its op is differentiable."""
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
    """Return freed memory to the system, start a new high-water mark, and return the bytes in use."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return _status("VmRSS")


def high_water_mark() -> int:
    """Return the most bytes in use since :func:`reset_peak`."""
    return _status("VmHWM")


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"{field}:\s+(\d+) kB", text)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {field}, expected Linux's")
    return int(found[1]) * 1024
