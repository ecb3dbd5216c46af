"""Checks that every op's public function makes: which implementation runs, and what a message says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Device types that an implementation takes, by the first word of its name. `testing.routing` adds the CPU to
# Triton's, where an interpreter runs the kernels.
DEVICES = {"cpp": ("cpu",), "triton": ("cuda",)}


def choose_implementation(
    impl: str,
    tensor: Tensor,
    implementations: Sequence[str],
    dtypes: Sequence[torch.dtype] = DTYPES,
    limit: str = "",
) -> str:
    """Return the implementation that runs: a named one is never replaced by another.

    Args:
        impl: as the caller named it, or ``auto``: the one of the tensor's device, else ``reference``.
        tensor: the op's first input.
        implementations: the names that the op knows.
        dtypes: what every implementation but ``reference`` takes.
        limit: what else it takes and the tensor is not, such as "heads of up to 256".

    Raises:
        ValueError: if ``impl`` is unknown, or cannot run for the tensor.
    """
    if impl not in implementations:
        raise ValueError(f"impl is {impl!r}, expected one of {', '.join(implementations)}")
    device, supported = tensor.device.type, tensor.dtype in dtypes and not limit
    if impl == "auto":
        native = {"cpu": "cpp", "cuda": "triton"}.get(device, "")
        return native if supported and native in implementations else "reference"
    if impl == "reference":
        return impl
    devices = DEVICES[impl.split("_")[0]]
    if device not in devices or not supported:
        names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
        takes = f"{', '.join(names[:-1])} and {names[-1]} on {devices[0]}"
        raise ValueError(
            f"impl={impl!r} takes {takes}{limit and ' and '}{limit}, input is {describe(tensor)} on {device}"
        )
    return impl


def describe(tensor: Tensor) -> str:
    """Return a tensor's dtype and shape, for a message."""
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"
