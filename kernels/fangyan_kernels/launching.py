"""Launches of Triton kernels at a third of their usual host time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Each holds its options, so that no others can take their address.
_compiled: dict[tuple[Any, ...], tuple[Any, tuple[int, ...], Mapping[str, int]]] = {}


# Beyond them Triton passes an integer in 64 bits, to another variant.
_SMALLEST, _LARGEST = -(2**31), 2**31 - 1


def launch(
    kernel: Any,
    grid: tuple[int, int],
    tensors: tuple[Tensor | None, ...],
    varying: tuple[float, ...],
    fixed: tuple[int, ...],
    options: Mapping[str, int],
) -> None:
    """Run ``kernel[grid](*tensors, *varying, *fixed, **options)`` on the current device.

    Triton binds and classifies every argument at every launch, 12 to 20 us for kernels of 20 to 40. Here a
    compiled variant is found by what it depends on, and launched as Triton's tutorials launch one themselves.

    Args:
        kernel: the ``@triton.jit`` function.
        grid: programs along both axes.
        tensors: the first is never None; where one does not begin at a multiple of 16 bytes, Triton finds
            the variant.
        varying: numbers that the kernel is not specialized on; where one needs 64 bits, likewise.
        fixed: integers of the layer.
        options: the kernel's constants in their order, which are the last of its arguments; then
            ``num_warps`` and the like. The same object at every launch, as a variant is found by it.
    """
    # By their addresses: kernels of two modules may have one name, and hashing one hashes its source.
    key: list[Any] = [id(kernel), id(options), fixed]
    addresses = 0
    for tensor in tensors:
        if tensor is None:
            key.append(None)
        else:
            key.append(tensor.dtype)
            addresses |= tensor.data_ptr()
    key.append(tensors[0].get_device())  # type: ignore[union-attr]
    # On AMD a variant also depends on whether a tensor is below 2 GB: there Triton finds it.
    usual = torch.version.hip is None and addresses % 16 == 0
    usual = usual and min(varying) >= _SMALLEST and max(varying) <= _LARGEST
    found = _compiled.get(tuple(key)) if usual else None
    if found is not None:
        variant, constants, _ = found
        variant[(*grid, 1)](*tensors, *varying, *fixed, *constants)
        return
    variant = kernel[grid](*tensors, *varying, *fixed, **options)
    if variant is not None and usual:  # the interpreter compiles nothing
        constants = tuple(options.values())[: list(options).index("num_warps")]
        _compiled[tuple(key)] = variant, constants, options
