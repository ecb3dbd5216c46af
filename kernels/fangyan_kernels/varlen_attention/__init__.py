"""Attention within each of many sequences that lie side by side, as one op.

Shape suffixes: T tokens, H heads, G heads of keys and values, D elements per head.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from fangyan_kernels.validation import choose_implementation, describe
from fangyan_kernels.varlen_attention import reference

__all__ = ["varlen_attention"]

Implementation = Literal["auto", "reference", "cpp"]
_IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)
_DTYPES = (torch.float32, torch.bfloat16)
MAX_HEAD_DIM = 256


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
    """Compute ``softmax(scale * query @ key.T) @ value`` within each sequence, by its own block alone.

    For short sequences this costs a fraction of a mask over whole rows. The backward keeps the
    inputs and computes the probabilities again.

    Args:
        query: ``(T, H, D)``, the tokens of all sequences side by side; heads of any strides.
        key: ``(T, G, D)`` in the dtype of ``query``, H a multiple of G: head ``h`` of the queries reads
            head ``h // (H / G)``.
        value: as ``key``.
        offsets: where sequences start, and the last one ends: ``(sequences + 1,)``, int32, from 0 to T.
        window: how many tokens before and after itself each token sees; -1 for its whole sequence.
            ``(-1, 0)`` is causal.
        scale: factor of the scores; 1 / sqrt(D) by default.
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
    limit = "" if query.shape[-1] <= MAX_HEAD_DIM else f"heads of up to {MAX_HEAD_DIM}"
    if choose_implementation(impl, query, _IMPLEMENTATIONS, _DTYPES, limit) == "reference":
        return reference.varlen_attention(query, key, value, offsets, window, scale)
    output: Tensor = torch.ops.fangyan.varlen_attention(query, key, value, offsets, *window, scale)
    return output


def _validate(query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, window: tuple[int, int]) -> None:
    if query.ndim != 3 or not query.is_floating_point() or 0 in query.shape[1:]:
        raise ValueError(f"query is {describe(query)}, expected floating point of shape (T, H, D)")
    tokens, heads, size = query.shape
    for name, tensor in (("key", key), ("value", value)):
        if tensor.ndim != 3 or (tensor.shape[0], tensor.shape[2]) != (tokens, size):
            raise ValueError(f"{name} is {describe(tensor)}, expected shape ({tokens}, G, {size})")
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
        raise ValueError(f"offsets is {describe(offsets)}, expected torch.int32 of shape (sequences + 1,)")
    if offsets.device != query.device:
        raise ValueError(f"offsets is on {offsets.device}, expected query's {query.device}")
    if len(window) != 2 or min(window) < -1:
        raise ValueError(f"window is {window}, expected two counts of tokens, -1 for all")
