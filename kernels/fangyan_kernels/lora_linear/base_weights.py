"""The frozen weights of an op: plain matrices, or 4-bit ones as bitsandbytes stores them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fangyan_kernels.ops.lora_linear import Layers
from fangyan_kernels.optional import import_bitsandbytes


class QuantState4bit(NamedTuple):
    """What the operator takes of a ``bitsandbytes`` ``Params4bit`` beside its packed bytes.

    Attributes:
        scales: each block's largest absolute value, float32; or, nested, 8-bit codes of them, their
            offset, their own blocks' scales and their code book.
        blocks: elements per block; nested, also elements per block of scales.
        quant_type: ``nf4`` or ``fp4``.
    """

    scales: list[Tensor]
    blocks: list[int]
    quant_type: str


def unpack_quant_state(weight: Any) -> QuantState4bit:
    """Return the tensors and sizes of a ``Params4bit``'s ``quant_state``."""
    state = weight.quant_state
    if not state.nested:
        return QuantState4bit([state.absmax], [state.blocksize], state.quant_type)
    nested = state.state2
    scales = [state.absmax, state.offset, nested.absmax, nested.code]
    return QuantState4bit(scales, [state.blocksize, nested.blocksize], state.quant_type)


def dequantize(weight: Any, dtype: torch.dtype | None = None) -> Tensor:
    """Return the values of a ``Params4bit``, (N, K), as a new matrix.

    They are read as one row: with AVX-512, bitsandbytes 0.50.2 takes other blocks' scales in rows that are a
    multiple of 32 and end within a block.

    Args:
        weight: the ``Params4bit``.
        dtype: of the result; by default that of the weight before it was packed.

    Raises:
        ModuleNotFoundError: if bitsandbytes is not installed.
    """
    state = copy(weight.quant_state)
    shape, state.shape = state.shape, torch.Size([state.shape.numel()])
    state.dtype = dtype or state.dtype
    bitsandbytes = import_bitsandbytes("a 4-bit weight")
    flat: Tensor = bitsandbytes.functional.dequantize_4bit(weight.data, state)
    return flat.view(shape)


class BaseWeights:
    """The frozen weights of the projections of one input."""

    def __init__(self, layers: Layers):
        """Take the operator's arguments."""
        self.tokens, self.in_features = layers.input_TK.shape
        self.out_features = [b.shape[0] for b in layers.b_NR]
        self.dtype = layers.input_TK.dtype
        self.quant_type = layers.quant_type
        self._weights, self._blocks = layers.weights, layers.blocks
        per_layer = len(layers.scales) // len(layers.weights)
        self._scales = [
            layers.scales[i * per_layer : (i + 1) * per_layer] for i in range(len(layers.weights))
        ]

    def dense(self, i: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return the weight of projection ``i``, (N, K); of a 4-bit one a new matrix."""
        if not self.quant_type:
            return self._weights[i]
        import_bitsandbytes("a 4-bit weight")  # registers the operators below
        packed, (absmax, *nested), blocks = self.stored(i)
        if nested:
            offset, scales, code = nested
            absmax = torch.ops.bitsandbytes.dequantize_blockwise(
                absmax, scales, code, blocks[1], torch.float32
            )
            absmax = absmax + offset
        elements = (self.out_features[i] * self.in_features,)  # as one row: see dequantize()
        flat: Tensor = torch.ops.bitsandbytes.dequantize_4bit(
            packed, absmax, blocks[0], self.quant_type, elements, dtype or self.dtype
        )
        return flat.view(self.out_features[i], self.in_features)

    def stored(self, i: int) -> tuple[Tensor, Sequence[Tensor], Sequence[int]]:
        """Return the bytes of 4-bit projection ``i``, and its :class:`QuantState4bit` scales and blocks."""
        packed = self._weights[i]
        return (
            packed if packed.dtype == torch.uint8 else packed.view(torch.uint8),
            self._scales[i],
            self._blocks,
        )

    def merges(self, drops: bool) -> bool:
        """Return whether W + s B A costs less than the low-rank products, and rounds no worse.

        Merging takes 2 N K R operations and moves 3 N K elements, however many tokens there are. The forward
        is then the frozen layer's one product, and so is the gradient of the input; what remains are the
        adapter's own gradients. With dropout, x and D * x differ and the low-rank products stay.

            forward + backward, merged:  4 T K N + 4 T R (K + N) + 4 N K R operations
            forward + backward, dropout: 4 T K N + T R (8 K + 6 N) operations

        Merging rounds W + s B A to float32, no worse than the products round. In 16 bits it would lose small
        adapters; so there only a 4-bit W, which is rounded to 16 bits anyway, is merged: in float32, rounded
        once.
        """
        if drops or (self.dtype != torch.float32 and not self.quant_type):
            return False
        out_features = sum(self.out_features)
        return self.tokens * (self.in_features + out_features) >= 2 * self.in_features * out_features

    def merged(self, i: int, a_RK: Tensor, b_NR: Tensor, scaling: float) -> Tensor:
        """Return W + s B A of projection ``i``, (N, K), a new matrix: added in float32, rounded once."""
        weight_NK = self.dense(i, torch.float32)
        return torch.addmm(weight_NK, b_NR.float(), a_RK.float(), alpha=scaling).to(self.dtype)
