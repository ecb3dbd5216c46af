"""What a file in ``ops/`` declares: an op's shapes, who computes it, and its floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
        sizes: its dimensions by their usual letters.
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
    """What a pass cannot do without: bytes read from and written to memory, and operations."""

    bytes: float
    flops: float


def always(shape: Shape) -> str | None:
    """A implementation that runs everywhere."""
    return None


@dataclass(frozen=True)
class Implementation:
    """Who computes the op.

    Attributes:
        name: as tables show it.
        role: the first ``baseline`` of an op is what all others are compared with.
        prepare: given a shape and inputs, all that need not be repeated; returns the call to time.
        missing: why it cannot run a shape here, or None.
        tolerance: the largest error relative to the truth's norm, for what is approximate by
            design; None holds it to the error budget.
        quick: whether ``--quick`` times it.
        computes: False for a part of the work that is no implementation: its values are not checked.
        compiled: by torch.compile, for every shape anew; its first call has to have compiled something.
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
    """By ``torch.compile``, as one graph: past its limit of variants that raises, and is not eager."""
    make = cache(lambda: torch.compile(call, dynamic=False, fullgraph=True))  # it imports its compiler
    return lambda *values: make()(*values)


def function(call: Callable[..., Any]) -> Callable[[Shape, Inputs], Callable[[], Any]]:
    """The ``prepare`` of a plain function of the inputs."""
    return lambda shape, inputs: lambda: call(*inputs)


@dataclass(frozen=True)
class ExpectedSpeedup:
    """A ratio that ``--quick`` asserts: the baseline's time over the implementation's is at least this.

    Attributes:
        shape: the shape's name and sizes, as :class:`Shape` prints them but for the dtype.
    """

    implementation: str
    shape: str
    pass_name: str
    at_least: float


@dataclass(frozen=True)
class Op:
    """An op and everything that the suite needs to time it.

    Attributes:
        inputs: a shape and a generator give one set of inputs; those that require a gradient are
            differentiated. Sets are drawn anew until they exceed the cache.
        truth: the op in float64, of inputs in float64.
        passes: :data:`DIFFERENTIABLE` or :data:`CALL`.
        work: the floor of a pass.
        calls_checked: calls after which a value is compared with the truth.
        checked_at: by letter, the largest sizes at which values are compared: the truth has no chunks.
        scaling: by letter, the sizes over which cost is fitted; the first shape of the device is
            the base.
        claims: ratios that ``--quick`` asserts.
        counted: C++ implementations, each with a small shape, whose instructions are counted.
        kernels: Triton kernels that are compiled for GPUs that are not here.
    """

    name: str
    shapes: tuple[Shape, ...]
    inputs: Callable[[Shape, torch.Generator], Inputs]
    reference: Callable[..., Any]
    implementations: tuple[Implementation, ...]
    cost: Callable[[Shape, str], Cost]
    passes: tuple[str, ...] = DIFFERENTIABLE
    calls_checked: int = 1
    checked_at: Mapping[str, int] = field(default_factory=dict)
    scaling: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    claims: tuple[ExpectedSpeedup, ...] = ()
    counted: tuple[tuple[str, Shape], ...] = ()
    kernels: tuple[OfflineKernel, ...] = ()

    @property
    def baseline(self) -> Implementation:
        return next(
            implementation for implementation in self.implementations if implementation.role == "baseline"
        )

    def implementation(self, name: str) -> Implementation:
        return next(implementation for implementation in self.implementations if implementation.name == name)


def make_inputs(op: Op, shape: Shape, seed: int) -> Inputs:
    """One set of inputs on the shape's device, the same for the same seed."""
    generator = torch.Generator(shape.device).manual_seed(seed)
    return op.inputs(shape, generator)


def leaves(inputs: Inputs) -> list[Tensor]:
    """The inputs whose gradients a backward computes."""
    return [value for value in inputs if isinstance(value, Tensor) and value.requires_grad]


def size_in_bytes(inputs: Inputs) -> int:
    return sum(value.numel() * value.element_size() for value in inputs if isinstance(value, Tensor))
