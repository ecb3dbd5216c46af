"""Limits of old GPUs: refused in a sentence before a kernel fails at them, or worked around."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

# The first compute capability with bfloat16 (CUDA C Programming Guide, "Compute Capabilities"), and the first
# whose tensor cores Triton uses: since its version 3.3, Turing's are idle (its pull request 5066).
BFLOAT16_SINCE = TENSOR_CORES_SINCE = (8, 0)


def refuse_bfloat16(input: Tensor) -> None:
    """Check that the GPU of a tensor computes in the tensor's dtype.

    A graph under compilation is not checked: PyTorch's own compiler refuses such a card.

    Raises:
        ValueError: for bfloat16 on a card older than Ampere, such as a T4 or an RTX 20.
    """
    if input.dtype != torch.bfloat16 or torch.compiler.is_compiling():
        return
    if reason := bfloat16_missing(input.device):
        raise ValueError(f"input is torch.bfloat16, which {reason}; expected torch.float16 or torch.float32")


def bfloat16_missing(device: torch.device) -> str | None:
    """Return why a device does not compute in bfloat16, as the end of a sentence, or None."""
    if device.type != "cuda" or (capability := _capability(device)) >= BFLOAT16_SINCE:
        return None
    found, needed = (".".join(map(str, version)) for version in (capability, BFLOAT16_SINCE))
    return f"GPUs have from compute capability {needed} on, and this one is of {found}"


def has_tensor_cores(device: torch.device) -> bool:
    """Return whether Triton's products use tensor cores; cuBLAS uses Turing's too."""
    return device.type != "cuda" or _capability(device) >= TENSOR_CORES_SINCE


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
