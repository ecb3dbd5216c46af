"""The operator as a library's products with the frozen weights and a back end's low-rank ones.

Where nothing is dropped, s B A is added to a copy of W: 2 N K R operations and 3 N K numbers moved, however
many tokens there are. The forward is then the frozen layer's one product, and so is the gradient of the
input; what remains are the adapter's own gradients. With dropout, x and D * x differ and the low-rank
products stay.

    forward + backward, merged:  4 T K N + 4 T R (K + N) + 4 N K R operations
    forward + backward, dropout: 4 T K N + T R (8 K + 6 N) operations

Merging rounds W + s B A to float32, no worse than the products round. In 16 bits it would lose small
adapters; so there only a 4-bit W, which is rounded to 16 bits anyway, is merged: in float32, rounded once.

Shape suffixes: T tokens, K in, N out, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fangyan_kernels.lora_linear.frozen import Frozen


class Tails(Protocol):
    """What a back end computes of layers with one input, accumulated in float32. ``b_RN`` is s B' of each."""

    def merged(self, frozen: Frozen, i: int, a_RK: Tensor, b_NR: Tensor, scaling: float) -> Tensor:
        """W + s B A of layer ``i``, (N, K), a new matrix: added in float32, rounded once."""
        ...

    def forward_(
        self,
        outputs_TN: Sequence[Tensor],
        input_TK: Tensor,
        a_RK: Sequence[Tensor],
        b_RN: Sequence[Tensor],
        seed: Tensor | None,
        dropout: float,
    ) -> None:
        """output += (D * input) A' (s B'), of every layer."""

    def backward_(
        self,
        grads_TN: Sequence[Tensor],
        input_TK: Tensor,
        a_RK: Sequence[Tensor],
        b_RN: Sequence[Tensor],
        seed: Tensor | None,
        dropout: float,
        grad_input_TK: Tensor | None,
        wants_adapters: bool,
    ) -> list[tuple[Tensor, Tensor]]:
        """The gradients of A and s B' of every layer, if wanted.

        Adds the sum of all D * (grad (s B')' A) to ``grad_input_TK``, if it is given.
        """
        ...


def forward(
    tails: Tails,
    input_TK: Tensor,
    weights: Sequence[Tensor],
    biases_N: Sequence[Tensor],
    a_RK: Sequence[Tensor],
    b_NR: Sequence[Tensor],
    scalings: Sequence[float],
    dropout: float,
    seed: Tensor | None,
    scales: Sequence[Tensor],
    blocks: Sequence[int],
    quant_type: str,
) -> list[Tensor]:
    """The operator ``fangyan::lora_linear``."""
    frozen = Frozen(input_TK, weights, b_NR, scales, blocks, quant_type)
    biases: Sequence[Tensor | None] = biases_N or [None] * len(weights)
    if _merges(frozen, seed):
        merged = (tails.merged(frozen, i, a_RK[i], b_NR[i], scalings[i]) for i in range(len(weights)))
        return [F.linear(input_TK, weight, bias) for weight, bias in zip(merged, biases, strict=True)]
    outputs_TN = [F.linear(input_TK, frozen.dense(i), bias) for i, bias in enumerate(biases)]
    tails.forward_(outputs_TN, input_TK, a_RK, _scaled(b_NR, scalings), seed, dropout)
    return outputs_TN


def backward(
    tails: Tails,
    grads_TN: Sequence[Tensor],
    input_TK: Tensor,
    weights: Sequence[Tensor],
    biases_N: Sequence[Tensor],
    a_RK: Sequence[Tensor],
    b_NR: Sequence[Tensor],
    scalings: Sequence[float],
    dropout: float,
    seed: Tensor | None,
    scales: Sequence[Tensor],
    blocks: Sequence[int],
    quant_type: str,
    wants_input: bool,
    wants_adapters: bool,
    wants_biases: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """The operator ``fangyan::lora_linear_backward``."""
    frozen = Frozen(input_TK, weights, b_NR, scales, blocks, quant_type)
    merges = _merges(frozen, seed)
    dtype = input_TK.dtype
    grad_input_TK = None
    if wants_input:
        grad_input_TK = _grad_input(tails if merges else None, frozen, grads_TN, a_RK, b_NR, scalings)
    grads_a, grads_b = [], []
    if wants_adapters or (wants_input and not merges):
        rest_TK = None if merges else grad_input_TK
        operands = grads_TN, input_TK, a_RK, _scaled(b_NR, scalings)
        pairs = tails.backward_(*operands, seed, dropout, rest_TK, wants_adapters)
        for (grad_RK, grad_RN), scaling in zip(pairs, scalings, strict=False):  # no pairs: none are wanted
            grads_a.append(grad_RK.to(dtype))
            grads_b.append((scaling * grad_RN.T).to(dtype))
    grads_bias = [g.sum(0, dtype=torch.float32).to(dtype) for g in grads_TN] if wants_biases else []
    return input_TK.new_empty(0) if grad_input_TK is None else grad_input_TK, grads_a, grads_b, grads_bias


def _grad_input(
    merging: Tails | None,
    frozen: Frozen,
    grads_TN: Sequence[Tensor],
    a_RK: Sequence[Tensor],
    b_NR: Sequence[Tensor],
    scalings: Sequence[float],
) -> Tensor:
    """The sum of every layer's g W, or g (W + s B A)."""
    total: Tensor | None = None
    for i, grad_TN in enumerate(grads_TN):
        if merging is None:
            weight_NK = frozen.dense(i)
        else:
            weight_NK = merging.merged(frozen, i, a_RK[i], b_NR[i], scalings[i])
        total = grad_TN @ weight_NK if total is None else total.addmm_(grad_TN, weight_NK)
    assert total is not None
    return total


def _merges(frozen: Frozen, seed: Tensor | None) -> bool:
    """Whether a merged weight costs less than the low-rank products, and rounds no worse."""
    if seed is not None or (frozen.dtype != torch.float32 and not frozen.quant_type):
        return False
    outer = sum(frozen.outer)
    return frozen.tokens * (frozen.inner + outer) >= 2 * frozen.inner * outer


def _scaled(b_NR: Sequence[Tensor], scalings: Sequence[float]) -> list[Tensor]:
    return [(scaling * b).T.contiguous() for b, scaling in zip(b_NR, scalings, strict=True)]
