"""A part of a GPU run, ``python -m hanging_part FOLDER``, that hangs as a call into a driver does."""

import ctypes
import sys
from pathlib import Path


def hang(*_):
    """Keeps Python's lock: no thread of Python's and no handler of a signal runs any more."""
    ctypes.PyDLL(None).pause()


def compile_one_and_hang(*arguments):
    """A process of the compilation beforehand: its first implementation is ready, its second never."""
    answers = arguments[-1]
    answers.put((0, None))
    answers.close()
    answers.join_thread()
    hang()


def main(folder):
    """An ops part of two entries; of the first one's implementations a peer hangs."""
    import torch

    from fangyan_bench.gpu import ops
    from fangyan_bench.gpu.entries import Entry
    from fangyan_bench.gpu.record import Budget, Record
    from fangyan_bench.harness.machine import PeakRates
    from fangyan_bench.harness.op import Cost, Implementation, Op, Shape, function

    def square(x):
        return (x * x).sum()

    def inputs(shape, generator):
        return (torch.randn(shape["T"], 4, generator=generator).requires_grad_(),)

    shapes = tuple(Shape(name, {"T": 8}) for name in ("first", "second"))
    implementations = (
        Implementation("eager", "baseline", function(square)),
        Implementation("peer", "peer", function(hang)),
        Implementation("fangyan", "ours", function(square)),
    )
    op = Op(
        "square", __name__, shapes, inputs, square, implementations, lambda _shape, _pass_name: Cost(1.0, 1.0)
    )
    everyone, without = ("eager", "peer", "fangyan"), ("eager", "fangyan")
    entries = [Entry(op.name, shape, who) for shape, who in zip(shapes, (everyone, without), strict=True)]
    ops.ops = lambda: {op.name: op}
    ops.HANGING = 0.0  # beyond the plan, 4 s here
    ceilings = PeakRates(1e10, {torch.float32: 1e10})
    ops.measure(entries, Record(folder, "ops"), Budget(60.0), ceilings, ops.DRY_TIMING_BUDGET, watch=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
