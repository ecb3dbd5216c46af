"""Schema, fake and autograd formula of attention over packed sequences.

Shape suffixes: T tokens, H heads, G heads of keys and values, D elements per head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Attention within each of the sequences that ``offsets`` bound. ``left`` and ``right`` are how many tokens
# before and after itself a token sees, -1 for all.
_ATTENTION_INPUTS = (
    "Tensor query_THD, Tensor key_TGD, Tensor value_TGD, Tensor offsets, int left, int right, float scale"
)
torch.library.define("fangyan::varlen_attention", f"({_ATTENTION_INPUTS}) -> Tensor")
torch.library.define(
    "fangyan::varlen_attention_backward",
    f"(Tensor grad_THD, {_ATTENTION_INPUTS}) -> (Tensor, Tensor, Tensor)",
)


@torch.library.register_fake("fangyan::varlen_attention")
def _fake(query_THD: Tensor, *_: Any) -> Tensor:
    return query_THD.new_empty(query_THD.shape)


@torch.library.register_fake("fangyan::varlen_attention_backward")
def _backward_fake(
    _grad_THD: Tensor, query_THD: Tensor, key_TGD: Tensor, value_TGD: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (tensor.new_empty(tensor.shape) for tensor in (query_THD, key_TGD, value_TGD))
    return query, key, value


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _backward(ctx: Any, grad_THD: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled() and type(grad_THD) is Tensor:
        raise RuntimeError(
            "varlen_attention: the gradient of a gradient (create_graph=True) is not implemented by its "
            "kernels, expected impl='reference'"
        )
    gradients = torch.ops.fangyan.varlen_attention_backward(grad_THD, *ctx.saved_tensors, *ctx.options)
    return (*gradients, None, None, None, None)


torch.library.register_autograd("fangyan::varlen_attention", _backward, setup_context=_setup_context)
