"""The frozen weights of an op: plain matrices, or 4-bit ones as bitsandbytes stores them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor


class QuantState4bit(NamedTuple):
    """What the operator is told of a ``bitsandbytes`` ``Params4bit`` beside its packed bytes.

    Attributes:
        scales: each block's largest absolute value, float32; or, nested, 8-bit codes of them, their
            offset, their own blocks' scales and their code book.
        blocks: numbers in a block; nested, also numbers in a block of scales.
        quant_type: ``nf4`` or ``fp4``.
    """

    scales: list[Tensor]
    blocks: list[int]
    quant_type: str


def unpack_quant_state(weight: Any) -> QuantState4bit:
    """The tensors and numbers of a ``Params4bit``'s ``quant_state``."""
    state = weight.quant_state
    if not state.nested:
        return QuantState4bit([state.absmax], [state.blocksize], state.quant_type)
    nested = state.state2
    scales = [state.absmax, state.offset, nested.absmax, nested.code]
    return QuantState4bit(scales, [state.blocksize, nested.blocksize], state.quant_type)


def dequantize(weight: Any, dtype: torch.dtype | None = None) -> Tensor:
    """What a ``Params4bit`` stands for, (N, K), a new matrix; ``dtype`` is by default that of before packing.

    It is read as one row: with AVX-512, bitsandbytes 0.50.2 takes other blocks' scales in rows that are a
    multiple of 32 and end within a block.
    """
    import bitsandbytes  # whoever holds a 4-bit weight has imported it; all others do without

    state = copy(weight.quant_state)
    shape, state.shape = state.shape, torch.Size([state.shape.numel()])
    state.dtype = dtype or state.dtype
    flat: Tensor = bitsandbytes.functional.dequantize_4bit(weight.data, state)
    return flat.view(shape)


class BaseWeights:
    """The frozen weights of the projections of one input.

    Args:
        input_TK: gives the dtype, K and T.
        weights: (N, K) each, or packed bytes.
        b_NR: their adapters' second matrices, which give each N.
        scales, blocks, quant_type: see :class:`QuantState4bit`; of all projections one after another.
    """

    def __init__(
        self,
        input_TK: Tensor,
        weights: Sequence[Tensor],
        b_NR: Sequence[Tensor],
        scales: Sequence[Tensor],
        blocks: Sequence[int],
        quant_type: str,
    ):
        self.tokens, self.inner = input_TK.shape
        self.outer = [b.shape[0] for b in b_NR]
        self.dtype = input_TK.dtype
        self.quant_type = quant_type
        self._weights, self._blocks = weights, blocks
        each = len(scales) // len(weights)
        self._scales = [scales[i * each : (i + 1) * each] for i in range(len(weights))]

    def dense(self, i: int, dtype: torch.dtype | None = None) -> Tensor:
        """The weight of projection ``i``, (N, K); of a 4-bit one a new matrix."""
        if not self.quant_type:
            return self._weights[i]
        packed, (absmax, *nested), blocks = self.stored(i)
        if nested:
            offset, scales, code = nested
            absmax = torch.ops.bitsandbytes.dequantize_blockwise(
                absmax, scales, code, blocks[1], torch.float32
            )
            absmax = absmax + offset
        numbers = (self.outer[i] * self.inner,)  # as one row: see dequantize()
        flat = torch.ops.bitsandbytes.dequantize_4bit(
            packed, absmax, blocks[0], self.quant_type, numbers, dtype or self.dtype
        )
        return flat.view(self.outer[i], self.inner)

    def stored(self, i: int) -> tuple[Tensor, Sequence[Tensor], Sequence[int]]:
        """Of 4-bit projection ``i``: its bytes, and its :class:`QuantState4bit` scales and block sizes."""
        packed = self._weights[i]
        return (
            packed if packed.dtype == torch.uint8 else packed.view(torch.uint8),
            self._scales[i],
            self._blocks,
        )

    def merges(self, drops: bool) -> bool:
        """Whether W + s B A costs less than the low-rank products, and rounds no worse.

        Merging takes 2 N K R operations and moves 3 N K numbers, however many tokens there are. The forward
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
        outer = sum(self.outer)
        return self.tokens * (self.inner + outer) >= 2 * self.inner * outer

    def merged(self, i: int, a_RK: Tensor, b_NR: Tensor, scaling: float) -> Tensor:
        """W + s B A of projection ``i``, (N, K), a new matrix: added in float32, rounded once."""
        weight_NK = self.dense(i, torch.float32)
        return torch.addmm(weight_NK, b_NR.float(), a_RK.float(), alpha=scaling).to(self.dtype)
