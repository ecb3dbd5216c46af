"""The process group of a run, and what one rank decides for all."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from fangyan.device import device, peak_memory  # before DeepSpeed, which would guess its device
from fangyan.errors import UserError

T = TypeVar("T")


def start_distributed() -> tuple[int, int]:
    """Join the launcher's process group, or start one of a single process; return (rank, ranks)."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # The GPU that it means is the right one, and naming it to the group would make NCCL connect at once.
    warnings.filterwarnings("ignore", r"barrier\(\): using the device under current context")
    # DeepSpeed calls `ninja` by name: a virtual environment's own need not be on the path.
    scripts = str(Path(sys.executable).parent)
    if scripts not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = scripts + os.pathsep + os.environ["PATH"]
    backend = get_accelerator().communication_backend_name()
    if "RANK" not in os.environ and not dist.is_initialized():
        # A group of one needs no port, and left to itself DeepSpeed would look for MPI.
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        os.environ["LOCAL_RANK"] = "0"  # deepspeed.initialize asks for it
        atexit.register(stop_distributed)
    deepspeed.init_distributed(dist_backend=backend)
    if dist.get_world_size() > 1 and get_accelerator().device_name() == "cpu":
        _unlink_shared_memory()
    return dist.get_rank(), dist.get_world_size()


def stop_distributed() -> None:
    """Leave the process group: PyTorch warns of one on GPUs that only the process's end leaves. Collective.

    After an error the others may not get here, so that several ranks call it only after success.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def _unlink_shared_memory() -> None:
    """Free the names of DeepSpeed's buffers between CPU ranks: it leaves 69 MB of memory per rank and run.

    Every rank has mapped all of them by now, and keeps them until it ends, however it ends.
    """
    dist.barrier()
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{dist.get_rank()}"
    Path("/dev/shm", name).unlink(missing_ok=True)


def largest_peak_memory() -> float:
    """Return the bytes of the rank that took most; see :func:`peak_memory`. Collective."""
    peak = torch.tensor(float(peak_memory()), dtype=torch.float64, device=device())
    dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    return float(peak)


def on_rank_zero(function: Callable[[], T]) -> T:
    """Return what ``function`` returns on rank 0, on every rank. Collective.

    On a shared disk another rank may see a file later, so that rank 0 looks for all. A mistake that it
    meets is raised everywhere: otherwise the others would hang.

    Raises:
        UserError: if the function raises it.
    """
    found: list[object] = [None, None]
    if dist.get_rank() == 0:
        try:
            found[0] = function()
        except UserError as error:
            found[1] = str(error)
        except OSError as error:
            found[1] = f"{error.filename or 'the run folder'}: {error.strerror or error}"
    dist.broadcast_object_list(found)
    if found[1] is not None:
        raise UserError(str(found[1]))
    return found[0]  # type: ignore[return-value]
