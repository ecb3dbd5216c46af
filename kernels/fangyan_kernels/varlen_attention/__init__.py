"""Attention within each of many sequences that lie side by side, as one op.

Shape suffixes: T tokens, H heads, G heads of keys and values, D numbers a head.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fangyan_kernels.varlen_attention import reference

__all__ = ["varlen_attention"]

Implementation = Literal["auto", "reference", "cpp"]
_IMPLEMENTATIONS = ("auto", "reference", "cpp")
_DTYPES = (torch.float32, torch.bfloat16)
LARGEST_HEAD = 256


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    *,
    window: tuple[int, int] = (-1, -1),
    scale: float | None = None,
    impl: Implementation = "auto",
) -> Tensor:
    """``softmax(scale * query @ key.T) @ value`` within each sequence, by its own block alone.

    For short sequences this is a fraction of what a mask over whole rows costs. The backward keeps the
    inputs and computes the probabilities again.

    Args:
        query: ``(T, H, D)``, the tokens of all sequences side by side; heads of any strides.
        key: ``(T, G, D)`` in the dtype of ``query``, H a multiple of G: head ``h`` of the queries reads
            head ``h // (H / G)``.
        value: as ``key``.
        offsets: where sequences start, and the last one ends: ``(sequences + 1,)``, int32, from 0 to T.
        window: how many tokens to the left and to the right of itself each token sees; -1 is all of its
            sequence. ``(-1, 0)`` is causal.
        scale: of the scores; 1 / sqrt(D) by default.
        impl: ``reference`` (PyTorch, any device and dtype), ``cpp`` (CPU, float32 and bfloat16, D at most
            256, computed in float32), or ``auto``. A named implementation that cannot run raises.

    Returns:
        ``(T, H, D)``, contiguous.

    Raises:
        ValueError: naming the argument, what was found and what was expected.

    Source:
        the signature is that of ``flash_attn_varlen_func`` (Dao 2023, arXiv 2307.08691).
    """
    _validate(query, key, value, offsets, window)
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    if _choose(impl, query) == "reference":
        return reference.varlen_attention(query, key, value, offsets, window, scale)
    output: Tensor = torch.ops.fangyan.varlen_attention(query, key, value, offsets, *window, scale)
    return output


def _choose(impl: str, query: Tensor) -> str:
    if impl not in _IMPLEMENTATIONS:
        raise ValueError(f"impl is {impl!r}, expected one of {', '.join(_IMPLEMENTATIONS)}")
    runs = query.device.type == "cpu" and query.dtype in _DTYPES and query.shape[-1] <= LARGEST_HEAD
    if impl == "auto":
        return "cpp" if runs else "reference"
    if impl == "cpp" and not runs:
        raise ValueError(
            f"impl='cpp' takes float32 and bfloat16 on the cpu and heads of up to {LARGEST_HEAD}, "
            f"query is {_describe(query)} on {query.device.type}"
        )
    return impl


def _validate(query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, window: tuple[int, int]) -> None:
    if query.ndim != 3 or not query.is_floating_point() or 0 in query.shape[1:]:
        raise ValueError(f"query is {_describe(query)}, expected floating point of shape (T, H, D)")
    tokens, heads, size = query.shape
    for name, tensor in (("key", key), ("value", value)):
        if tensor.ndim != 3 or (tensor.shape[0], tensor.shape[2]) != (tokens, size):
            raise ValueError(f"{name} is {_describe(tensor)}, expected shape ({tokens}, G, {size})")
        if tensor.shape[1] != key.shape[1] or tensor.shape[1] == 0 or heads % tensor.shape[1]:
            raise ValueError(
                f"{name} has {tensor.shape[1]} heads, expected as many as key, a divisor of {heads}"
            )
        if tensor.dtype != query.dtype or tensor.device != query.device:
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}, "
                f"expected query's {query.dtype} on {query.device}"
            )
    if offsets.ndim != 1 or offsets.dtype != torch.int32 or offsets.numel() == 0:
        raise ValueError(f"offsets is {_describe(offsets)}, expected torch.int32 of shape (sequences + 1,)")
    if offsets.device != query.device:
        raise ValueError(f"offsets is on {offsets.device}, expected query's {query.device}")
    if len(window) != 2 or min(window) < -1:
        raise ValueError(f"window is {window}, expected two numbers of tokens, -1 for all")


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"
