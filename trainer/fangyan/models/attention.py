"""Attention within each of many sequences in one row, by PyTorch's flash kernel, on the CPU by our own.

Registered with transformers' attention interface, so that every model written against it packs
without a change of its own.
"""

from __future__ import annotations

from typing import Any

import fangyan_kernels
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface

from fangyan.errors import UserError

NAME = "fangyan_varlen"


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001  (transformers passes it)
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within each sequence of one packed row: an attention function of transformers.

    Args:
        module: the attention layer, which may say ``is_causal``.
        query: (1, heads, T, D), 16-bit on a GPU, float32 or bfloat16 on the CPU.
        key: as query; it may have fewer heads.
        value: as key.
        attention_mask: of no use; see :func:`_no_mask`.
        dropout: refused.
        scaling: of the scores; by default ``D ** -0.5``.
        is_causal: whether a token attends to the past alone.
        sliding_window: how many tokens back it attends to, itself included.
        cu_seq_lens_q: where sequences start and end, (sequences + 1,), int32.
        max_length_q: the longest sequence.
        softcap: refused.
        s_aux: attention sinks; refused.
        position_bias: of the scores; refused.

    Returns:
        (1, T, heads, D), and no attention weights.

    Raises:
        UserError: for what the kernel does not have.
    """
    if dropout:
        raise UserError("model.attention_dropout: the variable-length kernel has no dropout, expected 0")
    for name, argument in {"softcap": softcap, "attention sinks": s_aux, "bias": position_bias}.items():
        if argument is not None:
            raise UserError(f"train.packing: the variable-length kernel has no {name}; expected false")
    if cu_seq_lens_q is None or max_length_q is None:
        raise UserError(
            "train.packing: the model does not tell its attention where sequences start; expected false"
        )
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    reach = sliding_window - 1 if sliding_window else -1
    window = (reach, 0 if causal else reach)
    attend = _attend_on_cpu if query.device.type == "cpu" else _attend_on_gpu
    return attend(query, key, value, cu_seq_lens_q, max_length_q, window, scaling).unsqueeze(0), None


def _attend_on_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    longest: int,  # noqa: ARG001  (what the GPU's needs)
    window: tuple[int, int],
    scaling: float | None,
) -> Tensor:
    """Return (T, heads, D), by our kernel."""
    # Views: selecting the row would have its backward fill zeros and copy.
    query, key, value = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
    return fangyan_kernels.varlen_attention(query, key, value, offsets, window=window, scale=scaling)


def _attend_on_gpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    longest: int,
    window: tuple[int, int],
    scaling: float | None,
) -> Tensor:
    """Return (T, heads, D), by PyTorch's flash kernel."""
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
    query, key, value = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    output = varlen_attn(
        query, key, value, offsets, offsets, longest, longest, scale=scaling, window_size=window
    )
    assert isinstance(output, Tensor)
    return output


def _no_mask(*_: Any, **__: Any) -> None:
    """Build no mask: the kernel knows the boundaries."""


AttentionInterface.register(NAME, varlen_attention)
AttentionMaskInterface.register(NAME, _no_mask)
