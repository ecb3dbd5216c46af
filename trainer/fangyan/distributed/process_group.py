"""The process group of a run: how it starts and ends, and what one rank decides for all."""

from __future__ import annotations

import atexit
import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from fangyan.device import device, peak_memory  # before DeepSpeed, which would guess its device
from fangyan.distributed.heartbeat import Heartbeat
from fangyan.distributed.launchers import rank_variables
from fangyan.errors import OF_ROOM, UserError, disk_error
from fangyan.files import RESUME
from fangyan.terminal import say_later

T = TypeVar("T")

# Seconds in which all ranks have to come: nodes take that long to import what a rank needs.
_MEET = 300
# Seconds in which ranks that have met answer each other.
_ANSWER = 50
# What a rank may take alone, such as an export of a large model. Ranks that answer no longer are found by
# their heartbeat, much sooner.
_COLLECTIVE = timedelta(hours=2)


@dataclass
class _Group:
    """What a group of several ranks has besides the connections that gradients take.

    Attributes:
        control: on the CPU, whatever the ranks compute on.
        store: of rank 0.
        runs: that were watched.
        heartbeat: of the latest.
    """

    control: dist.ProcessGroup
    store: Any
    runs: int = 0
    heartbeat: Heartbeat | None = None


_group: _Group | None = None


def start_distributed() -> tuple[int, int]:
    """Join the launcher's process group, or start one of a single process; return (rank, ranks).

    Raises:
        UserError: if the ranks cannot reach each other, with the address that was tried.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # The GPU that it means is the right one, and naming it to the group would make NCCL connect at once.
    warnings.filterwarnings("ignore", r"barrier\(\): using the device under current context")
    # DeepSpeed calls it by the name that PyTorch 2.13 has replaced.
    warnings.filterwarnings("ignore", r"`torch\.distributed\..*` is deprecated", FutureWarning)
    # Shared memory between CPU ranks, for inference alone: DeepSpeed would compile it where a run starts.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = get_accelerator().communication_backend_name()
    if not dist.is_initialized():
        os.environ.update(rank_variables())
        if "RANK" in os.environ:
            _meet(backend)
        else:
            # A group of one needs no port, and left to itself DeepSpeed would look for MPI.
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=0, world_size=1)
            os.environ["LOCAL_RANK"] = "0"  # deepspeed.initialize asks for it
            atexit.register(stop_distributed)
    deepspeed.init_distributed(dist_backend=backend)
    return dist.get_rank(), dist.get_world_size()


def _meet(backend: str) -> None:
    """Connect the launcher's ranks, and have them answer once."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = _rendezvous(rank, ranks)
    local = os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE"))
    interface = None if local == str(ranks) else interface_towards(os.environ["MASTER_ADDR"])
    if interface is not None:
        # By default gloo offers what this host's name resolves to, often 127.0.1.1.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    answer = timedelta(seconds=_ANSWER)
    store.set_timeout(answer)
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=answer)
        control = dist.new_group(backend="gloo", timeout=answer)
        dist.all_reduce(torch.ones((), device=device()))
        dist.barrier(control)
    except (RuntimeError, OSError) as error:
        raise UserError(_unreachable(rank, str(error)), on_every_rank=False) from error
    for group in (dist.group.WORLD, control):
        dist.distributed_c10d._set_pg_timeout(_COLLECTIVE, group)
    global _group
    _group = _Group(control, store)


def _rendezvous(rank: int, ranks: int) -> Any:
    """Return the store of rank 0, once all ranks have come."""
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    me = f"rank {rank} on {socket.gethostname()}"
    whom = f"all of {ranks} ranks to come to {where}" if rank == 0 else f"rank 0 to answer at {where}"
    try:
        with say_later(f"{me} waits for {whom}, for {_MEET} s at most"):
            return next(rendezvous("env://", timeout=timedelta(seconds=_MEET)))[0]
    except (RuntimeError, OSError) as error:
        if "EADDRINUSE" in str(error):
            what = f"port {os.environ['MASTER_PORT']} (MASTER_PORT) is in use on this node"
            expected = "a free one, such as deepspeed --master_port 29501"
        elif rank == 0:
            what = f"not all of {ranks} ranks came to {where} within {_MEET} s"
            expected = "every node to be started, and to reach this address and port"
        else:
            what = f"nobody answers at {where} (MASTER_ADDR:MASTER_PORT) within {_MEET} s"
            expected = "rank 0 to be started there, and its port to be open"
        raise UserError(f"{me}: {what}; expected {expected}", on_every_rank=False) from error


def _unreachable(rank: int, reason: str) -> str:
    """Return why ranks that have met do not reach each other: each has offered the others an address."""
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    known = ", ".join(f"{name} {found}" for name, found in sorted(addresses().items()))
    chosen = os.environ.get("GLOO_SOCKET_IFNAME", "not set")
    return (
        f"rank {rank} on {socket.gethostname()}: it reached {where}, but not all other ranks within "
        f"{_ANSWER} s ({reason.splitlines()[0][:200]}); GLOO_SOCKET_IFNAME is {chosen}, "
        "expected the interface that the nodes share (and NCCL_SOCKET_IFNAME likewise on GPUs); this host "
        f"has {known}"
    )


def addresses() -> dict[str, str]:
    """Return this host's IPv4 address by interface."""
    return {
        name: entry.address
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET
    }


def interface_towards(address: str) -> str | None:
    """Return the network interface that leads to an address, maybe this host's own; None if unknown."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return None
    found = [name for name, one in addresses().items() if one == own and not own.startswith("127.")]
    return found[0] if found else None


def control_group() -> dist.ProcessGroup | None:
    """Return the group for what is not computed with, on the CPU; None for the only rank's."""
    return None if _group is None else _group.control


def stop_distributed() -> None:
    """Leave the process group: PyTorch warns of one on GPUs that only the process's end leaves. Collective.

    After an error the others may not get here, so that several ranks call it only after success.
    """
    global _group
    if dist.is_initialized():
        import deepspeed.comm

        _group = None
        # DeepSpeed lets go of the groups it keeps too, or a later run of this process would take a dead one.
        owner = deepspeed.comm if deepspeed.comm.is_initialized() else dist
        owner.destroy_process_group()


def report_step(step: int) -> None:
    """Let the other ranks know how many steps this one has done."""
    if _group is not None and _group.heartbeat is not None:
        _group.heartbeat.step = step


def announce_end(sentence: str, exit_code: int) -> None:
    """Tell the other ranks of a run why this process is about to end, which takes a second or two."""
    if _group is not None and _group.heartbeat is not None:
        _group.heartbeat.announce(sentence, exit_code)


@contextmanager
def watching_ranks() -> Iterator[None]:
    """Watch the other ranks of a run, and end with it where one of them is lost. Collective.

    Raises:
        RankLost: in place of what a collective raises then.
    """
    if _group is None or dist.get_world_size() == 1:
        yield
        return
    _group.heartbeat = heartbeat = _start_heartbeat(_group)
    try:
        yield
        dist.barrier(_group.control)
    except UserError:
        heartbeat.let_live()
        raise
    except Exception as error:
        heartbeat.let_live()
        lost = heartbeat.explain(error)
        if lost is None:
            raise
        raise lost from error
    _group.heartbeat = None  # what ranks do after a run is their own affair
    heartbeat.stop()


def _start_heartbeat(group: _Group) -> Heartbeat:
    heartbeat = Heartbeat(dist.get_rank(), dist.get_world_size())
    group.runs += 1
    store = torch._C._distributed_c10d.PrefixStore(f"fangyan/{group.runs}", group.store)
    try:
        heartbeat.start(store, os.environ["MASTER_ADDR"])
    except (RuntimeError, OSError) as error:
        raise UserError(_unreachable(dist.get_rank(), str(error)), on_every_rank=False) from error
    return heartbeat


def largest_peak_memory() -> float:
    """Return the bytes of the rank that took most; see :func:`peak_memory`. Collective."""
    peak = torch.tensor(float(peak_memory()), dtype=torch.float64, device=device())
    dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    return float(peak)


def gathered(value: T) -> list[T]:
    """Return every rank's value, which is pickled on the way. Collective."""
    if dist.get_world_size() == 1:
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value, group=control_group())
    return found


def on_ranks(ranks: Sequence[int], function: Callable[[], T]) -> list[T]:
    """Call a function on some ranks, and return on every rank what it returns on each of them. Collective.

    A mistake that one of them meets is raised everywhere: otherwise the others would hang.

    Raises:
        UserError: if the function raises it, or an OSError.
    """
    found: T | None = None
    mistake: str | None = None
    if dist.get_rank() in ranks:
        try:
            found = function()
        except UserError as error:
            mistake = str(error)
        except OSError as error:
            mistake = _sentence(error)
    outcomes = gathered((found, mistake, socket.gethostname()))
    for _, mistake, host in outcomes:
        if mistake is not None:
            raise UserError(f"{host}: {mistake}" if len(ranks) > 1 else mistake)
    return [outcomes[rank][0] for rank in ranks]  # type: ignore[misc]


def _sentence(error: OSError) -> str:
    path = error.filename or "the run folder"
    if error.errno in OF_ROOM:
        return str(disk_error(Path(path), error, RESUME))
    return f"{path}: {error.strerror or error}"


def on_rank_zero(function: Callable[[], T]) -> T:
    """Return what a function returns on rank 0, on every rank; see :func:`on_ranks`. Collective.

    On a shared disk another rank may see a file later, so that rank 0 looks for all.
    """
    return on_ranks([0], function)[0]
