"""Attention within each of many sequences in one row, by PyTorch's variable-length flash kernel.

Registered with transformers' attention interface, so that every model written against it packs
without a change of its own.
"""

from __future__ import annotations

from typing import Any

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
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function over one packed row.

    Args:
        query, key, value: (1, heads, T, D), bfloat16 or float16; key and value may have fewer heads.
        cu_seq_lens_q: where sequences start and end, (sequences + 1,), int32.
        max_length_q: the longest sequence.

    Returns:
        (1, T, heads, D), and no attention weights.
    """
    if dropout:
        raise UserError("model.attention_dropout: the variable-length kernel has no dropout, expected 0")
    if softcap:
        raise UserError("train.packing: the variable-length kernel has no softcap, expected false")
    assert cu_seq_lens_q is not None, "only packed batches come here"
    assert max_length_q is not None
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    reach = sliding_window - 1 if sliding_window else -1
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
    query, key, value = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    output = varlen_attn(
        query,
        key,
        value,
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(reach, 0 if causal else reach),
    )
    assert isinstance(output, Tensor)
    return output[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    """The kernel knows the boundaries; transformers need build no mask."""


AttentionInterface.register(NAME, varlen_attention)
AttentionMaskInterface.register(NAME, _no_mask)
