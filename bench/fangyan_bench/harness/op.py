"""What a file in ``ops/`` declares: an op's shapes, its implementations, and what it must cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import torch
from fangyan_kernels.testing.offline import OfflineKernel
from torch import Tensor

Role = Literal["baseline", "peer", "ours"]
Inputs = tuple[Any, ...]

DIFFERENTIABLE = ("forward", "backward", "forward+backward")
CALL = ("call",)


@dataclass(frozen=True)
class Shape:
    """One setting of an op.

    Attributes:
        name: what the setting stands for, such as ``tags``.
        sizes: size of every dimension, by its letter.
        device: ``cpu`` or ``cuda``: the shapes worth timing differ.
        dtype: of the floating-point inputs.
        quick: whether ``--quick`` times it.
    """

    name: str
    sizes: Mapping[str, int]
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    quick: bool = False

    def __getitem__(self, dim: str) -> int:
        return self.sizes[dim]

    def __str__(self) -> str:
        sizes = "-".join(f"{dim}{size}" for dim, size in self.sizes.items())
        return f"{self.name}-{sizes}-{str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Cost:
    """Lower bounds of a pass: bytes read from and written to memory, floating-point operations."""

    bytes: float
    flops: float


def always(_shape: Shape) -> str | None:
    """Return None: the implementation runs at every shape."""
    return None


@dataclass(frozen=True)
class Implementation:
    """One implementation of an op.

    Attributes:
        name: as tables show it.
        role: the first ``baseline`` of an op is what all others are compared with.
        prepare: takes a shape and inputs, does what need not be repeated, and returns the call to time.
        missing: returns why it cannot run a shape on this machine, or None.
        tolerance: largest error relative to the reference's norm, for what is approximate by design; None
            holds it to the error budget.
        quick: whether ``--quick`` times it.
        computes: False if it does only a part of the op's work: its values are not checked.
        compiled: whether torch.compile compiles it again for every shape; its first call has to have
            compiled something.
    """

    name: str
    role: Role
    prepare: Callable[[Shape, Inputs], Callable[[], Any]]
    missing: Callable[[Shape], str | None] = always
    tolerance: float | None = None
    quick: bool = True
    computes: bool = True
    compiled: bool = False


def compiled(call: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function as one graph: beyond its limit of variants it raises instead of running eagerly."""
    make = cache(lambda: torch.compile(call, dynamic=False, fullgraph=True))  # it imports its compiler
    return lambda *values: make()(*values)


def function(call: Callable[..., Any]) -> Callable[[Shape, Inputs], Callable[[], Any]]:
    """Return the ``prepare`` of a plain function of the inputs."""
    return lambda _shape, inputs: lambda: call(*inputs)


@dataclass(frozen=True)
class ExpectedSpeedup:
    """A ratio that ``--quick`` asserts: the baseline's time over the implementation's.

    Attributes:
        shape: the shape's name and sizes, as :class:`Shape` prints them without the dtype.
        at_least: the smallest ratio that passes.
    """

    implementation: str
    shape: str
    pass_name: str
    at_least: float


@dataclass(frozen=True)
class Op:
    """An op and everything that the suite needs to measure it.

    Attributes:
        module: the module that declares it as ``OP``; processes that measure memory import it.
        inputs: takes a shape and a generator, and returns one set of inputs; those that require a gradient
            are differentiated. As many sets are made as exceed the cache.
        reference: the op in float64, of inputs in float64.
        cost: takes a shape and a pass, and returns what the pass must cost at least.
        passes: :data:`DIFFERENTIABLE` or :data:`CALL`.
        calls_checked: calls after which a value is compared with the reference's.
        checked_at: by dimension, the largest size at which values are compared: the reference computes in
            one piece.
        scaling: by dimension, the sizes over which the cost's growth is fitted; the first shape of the
            device is the base.
        expected_speedups: what ``--quick`` asserts.
        counted: C++ implementations, each with a small shape, whose instructions are counted.
        kernels: Triton kernels that are compiled for GPUs that are not here.
    """

    name: str
    module: str
    shapes: tuple[Shape, ...]
    inputs: Callable[[Shape, torch.Generator], Inputs]
    reference: Callable[..., Any]
    implementations: tuple[Implementation, ...]
    cost: Callable[[Shape, str], Cost]
    passes: tuple[str, ...] = DIFFERENTIABLE
    calls_checked: int = 1
    checked_at: Mapping[str, int] = field(default_factory=dict)
    scaling: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    expected_speedups: tuple[ExpectedSpeedup, ...] = ()
    counted: tuple[tuple[str, Shape], ...] = ()
    kernels: tuple[OfflineKernel, ...] = ()

    @property
    def baseline(self) -> Implementation:
        """The implementation that all others are compared with."""
        return next(each for each in self.implementations if each.role == "baseline")

    def implementation(self, name: str) -> Implementation:
        """Return the implementation of this name."""
        return next(each for each in self.implementations if each.name == name)

    def implementations_to_time(self, quick: bool) -> list[Implementation]:
        """Return all implementations, or those of ``--quick``."""
        return [each for each in self.implementations if each.quick or not quick]

    def shape(self, text: str) -> Shape:
        """Return the shape that prints as this text."""
        return next(shape for shape in self.shapes if str(shape) == text)

    def shapes_to_time(self, device: str, quick: bool) -> list[Shape]:
        """Return the shapes of this device, or those of ``--quick``."""
        return [shape for shape in self.shapes if shape.device == device and (shape.quick or not quick)]

    def shape_to_check(self, shape: Shape) -> Shape:
        """Return the shape with its sizes limited to those at which values are compared."""
        sizes = {dim: min(size, self.checked_at.get(dim, size)) for dim, size in shape.sizes.items()}
        return replace(shape, sizes=sizes)


def make_inputs(op: Op, shape: Shape, seed: int) -> Inputs:
    """Return one set of inputs on the shape's device, the same for the same seed."""
    generator = torch.Generator(shape.device).manual_seed(seed)
    return op.inputs(shape, generator)


def leaves(inputs: Inputs) -> list[Tensor]:
    """Return the inputs whose gradients a backward computes."""
    return [value for value in inputs if isinstance(value, Tensor) and value.requires_grad]


def size_in_bytes(inputs: Inputs) -> int:
    """Return the bytes of all tensors among the inputs."""
    return sum(value.numel() * value.element_size() for value in inputs if isinstance(value, Tensor))
