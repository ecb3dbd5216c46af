"""Launches of Triton kernels at a third of their usual price to the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_compiled: dict[tuple[Any, ...], Any] = {}


def launch(
    kernel: Any,
    grid: tuple[int, int],
    tensors: tuple[Tensor | None, ...],
    varying: tuple[float, ...],
    fixed: tuple[int, ...],
    options: Mapping[str, int],
) -> None:
    """Runs ``kernel[grid](*tensors, *varying, *fixed, **options)``, the device being the current one.

    Triton binds and classifies every argument at every launch, 12 to 20 us for these. Here a compiled variant
    is found by what it depends on, and launched as Triton's tutorials launch one themselves.

    Args:
        tensors: where one does not begin at a multiple of 16 bytes, Triton finds the variant.
        varying: numbers that the kernel is not specialized on.
        fixed: integers of the layer.
        options: the kernel's constants in their order, which are the last of its arguments; then
            ``num_warps`` and ``num_stages``.
    """
    values = tuple(options.values())
    key: list[Any] = [kernel.__name__, fixed, values]
    addresses = 0
    for tensor in tensors:
        if tensor is None:
            key.append(None)
        else:
            key.append(tensor.dtype)
            addresses |= tensor.data_ptr()
    key.append(tensors[0].get_device())  # type: ignore[union-attr]
    found = None if addresses % 16 else _compiled.get(tuple(key))
    if found is not None:
        found[(*grid, 1)](*tensors, *varying, *fixed, *values[:-2])
        return
    found = kernel[grid](*tensors, *varying, *fixed, **options)
    if found is not None and not addresses % 16:  # the interpreter compiles nothing
        _compiled[tuple(key)] = found
