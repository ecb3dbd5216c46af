"""Gluon kernels on the CPU: their Python source is run, and threads play the parts of Hopper.

Triton has an interpreter for ``tl`` and none for Gluon. This one knows what a warp-specialized product needs:
shared memory, mbarriers, TMA copies, wgmma. Every partition is a thread. It is built to find what a kernel
does too early: a TMA load overwrites its buffer at once, a product reads its operands only when it is waited
for, a store its buffer only when that has to be free; shared memory holds NaN at first; a barrier that nobody
completes fails the test.
"""

import threading
from types import SimpleNamespace

import torch
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonJITFunction

PATIENCE = 10.0  # seconds of waiting at a barrier after which the kernel hangs


def simulate(monkeypatch, module):
    """Launches of the module's Gluon kernels run here."""
    for name, value in list(vars(module).items()):
        if isinstance(value, GluonJITFunction):
            monkeypatch.setattr(module, name, Launcher(value.fn))
        elif isinstance(value, gl.constexpr):
            monkeypatch.setattr(module, name, Constant(value.value))
    monkeypatch.setattr(module, "gl", Language())
    monkeypatch.setattr(module, "tma", Tma())
    monkeypatch.setattr(module, "mbarrier", MBARRIER)
    monkeypatch.setattr(module, "fence_async_shared", lambda: None)
    monkeypatch.setattr(module, "warpgroup_mma", warpgroup_mma)
    monkeypatch.setattr(module, "warpgroup_mma_wait", warpgroup_mma_wait)


class Constant(int):
    """A global ``gl.constexpr``: a number in kernels, its ``value`` on the host."""

    @property
    def value(self):
        return int(self)


class Launcher:
    """A kernel, launched by ``kernel[grid](...)``, or a function that kernels call."""

    def __init__(self, function):
        self.function = function

    def __call__(self, *args):
        return self.function(*args)

    def __getitem__(self, grid):
        def launch(*args, num_warps, maxnreg, **constants):
            language = self.function.__globals__["gl"]
            for language.program in range(grid[0]):
                language.programs = grid[0]
                self.function(*map(descriptor, args), **constants)

        return launch


def descriptor(host):
    """What a kernel sees of a descriptor made on the host."""
    block = torch.empty(host.block_shape, dtype=host.base.dtype, device="meta")
    return SimpleNamespace(
        base=host.base.detach(),
        shape=tuple(host.shape),
        dtype=host.base.dtype,
        layout=host.layout,
        block_type=SimpleNamespace(shape=list(host.block_shape), nbytes=block.nbytes),
    )


class Language:
    """``gl``: what is not about the GPU is Triton's own."""

    int64, float32 = torch.int64, torch.float32
    zeros = staticmethod(lambda shape, dtype, layout: torch.zeros(shape, dtype=dtype))
    reshape, permute = staticmethod(torch.reshape), staticmethod(torch.permute)
    split = staticmethod(lambda tensor: tensor.unbind(-1))
    cdiv = staticmethod(lambda count, size: -(-count // size))
    static_range = staticmethod(range)
    constexpr, NVMMADistributedLayout = gl.constexpr, gl.NVMMADistributedLayout

    def program_id(self, axis):
        return self.program

    def num_programs(self, axis):
        return self.programs

    def allocate_shared_memory(self, dtype, shape, layout):
        if dtype == self.int64:
            return Barriers([Barrier() for _ in range(shape[0])])
        return Memory(torch.full([int(size) for size in shape], torch.nan, dtype=dtype))

    def warp_specialize(self, partitions, worker_num_warps, worker_num_regs):
        errors = []

        def run(function, args):
            try:
                function(*args)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=partition, daemon=True) for partition in partitions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]


class Memory:
    """A piece of shared memory."""

    def __init__(self, values):
        self.values = values
        self.shape = values.shape

    def index(self, i):
        assert 0 <= i < len(self.values)
        return Memory(self.values[i])

    def slice(self, start, length, dim):
        return Memory(self.values.narrow(dim, int(start), int(length)))

    def permute(self, order):
        return Memory(self.values.permute(order))

    def store(self, values):
        assert values.shape == self.shape
        self.values.copy_(values)


class Barriers(list):
    index = list.__getitem__


class Barrier:
    """An mbarrier: a phase ends when all have arrived and all announced bytes have been copied."""

    def __init__(self):
        self.changed = threading.Condition()
        self.count = self.arrivals = self.bytes = self.phase = 0

    def update(self, arrivals=0, size=0):
        with self.changed:
            self.arrivals += arrivals
            self.bytes += size
            assert 0 <= self.arrivals <= self.count
            if self.arrivals == self.count and self.bytes == 0:
                self.arrivals, self.phase = 0, self.phase ^ 1
                self.changed.notify_all()

    def wait(self, parity):
        with self.changed:
            assert self.changed.wait_for(lambda: self.phase != parity, PATIENCE), "the kernel hangs"


MBARRIER = SimpleNamespace(
    MBarrierLayout=lambda: None,
    init=lambda barrier, count: setattr(barrier, "count", count),
    wait=lambda barrier, phase: barrier.wait(phase),
    expect=lambda barrier, size: barrier.update(1, size),
    arrive=lambda barrier, pred=True: barrier.update(1) if pred else None,
)


class Tma:
    """Copies of tiles; past a tensor's edges, zeros are read and nothing is written."""

    def __init__(self):
        self.stores = threading.local()

    def async_copy_global_to_shared(self, source, offsets, barrier, target):
        assert list(target.shape) == source.block_type.shape
        tile = torch.zeros(source.block_type.shape, dtype=source.dtype)
        rows, columns = self.inside(source, offsets)
        tile[: len(rows), : len(columns)] = source.base[rows][:, columns]
        target.values.copy_(tile)
        barrier.update(size=-source.block_type.nbytes)

    def async_copy_shared_to_global(self, target, offsets, source):
        assert list(source.shape) == target.block_type.shape
        rows, columns = self.inside(target, offsets)
        # Until it is waited for: new memory may hold the right values of an earlier test.
        target.base[rows[:, None], columns] = float("nan")
        self.under_way().append((target, offsets, source))

    def store_wait(self, pendings):
        while len(self.under_way()) > pendings:
            target, offsets, source = self.under_way().pop(0)
            rows, columns = self.inside(target, offsets)
            target.base[rows[:, None], columns] = source.values[: len(rows), : len(columns)]

    def under_way(self):
        return self.stores.__dict__.setdefault("list", [])

    @staticmethod
    def inside(tensor, offsets):
        sizes = zip(offsets, tensor.block_type.shape, tensor.shape, strict=True)
        return [torch.arange(min(int(first), end), min(int(first + size), end)) for first, size, end in sizes]


class Pending:
    """Accumulators with products under way."""

    def __init__(self, total, products):
        self.total, self.products = total, products


def warpgroup_mma(left, right, total, is_async):
    assert is_async
    if not isinstance(total, Pending):
        total = Pending(total, [])
    return Pending(total.total, [*total.products, (left, right)])


def warpgroup_mma_wait(under_way, totals):
    (pending,) = totals
    if not isinstance(pending, Pending):
        return pending
    total, products = pending.total, list(pending.products)
    while len(products) > under_way:
        left, right = products.pop(0)
        total = total + left.values.float() @ right.values.float()
    return Pending(total, products) if products else total
