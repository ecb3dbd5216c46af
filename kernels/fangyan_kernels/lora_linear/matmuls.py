"""The operator on the CPU: a library's products with the frozen weights, then ``cpu.py``'s low-rank ones.

Where nothing is dropped, s B A may be added to a copy of W (:meth:`BaseWeights.merges`).

Shape suffixes: T tokens, K in, N out, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fangyan_kernels.lora_linear import cpu
from fangyan_kernels.lora_linear.base_weights import BaseWeights


def forward(
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
    keep_low: bool,
) -> tuple[list[Tensor], Tensor]:
    """The operator ``fangyan::lora_linear``; low is not kept: the backward has x's tile in the cache."""
    frozen = BaseWeights(input_TK, weights, b_NR, scales, blocks, quant_type)
    biases: Sequence[Tensor | None] = biases_N or [None] * len(weights)
    low_TR = input_TK.new_empty(0)
    if frozen.merges(seed is not None):
        merged = (cpu.merged(frozen, i, a_RK[i], b_NR[i], scalings[i]) for i in range(len(weights)))
        outputs_TN = [F.linear(input_TK, weight, bias) for weight, bias in zip(merged, biases, strict=True)]
        return outputs_TN, low_TR
    outputs_TN = [F.linear(input_TK, frozen.dense(i), bias) for i, bias in enumerate(biases)]
    cpu.forward_(outputs_TN, input_TK, a_RK, _scaled(b_NR, scalings), seed, dropout)
    return outputs_TN, low_TR


def backward(
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
    low_TR: Tensor,
    wants_input: bool,
    wants_adapters: bool,
    wants_biases: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """The operator ``fangyan::lora_linear_backward``."""
    frozen = BaseWeights(input_TK, weights, b_NR, scales, blocks, quant_type)
    merges = frozen.merges(seed is not None)
    dtype = input_TK.dtype
    grad_input_TK = None
    if wants_input:
        grad_input_TK = _grad_input(merges, frozen, grads_TN, a_RK, b_NR, scalings)
    grads_a, grads_b = [], []
    if wants_adapters or (wants_input and not merges):
        rest_TK = None if merges else grad_input_TK
        operands = grads_TN, input_TK, a_RK, _scaled(b_NR, scalings)
        pairs = cpu.backward_(*operands, seed, dropout, rest_TK, wants_adapters)
        for (grad_RK, grad_RN), scaling in zip(pairs, scalings, strict=False):  # no pairs: none are wanted
            grads_a.append(grad_RK.to(dtype))
            grads_b.append((scaling * grad_RN.T).to(dtype))
    grads_bias = [g.sum(0, dtype=torch.float32).to(dtype) for g in grads_TN] if wants_biases else []
    return input_TK.new_empty(0) if grad_input_TK is None else grad_input_TK, grads_a, grads_b, grads_bias


def _grad_input(
    merges: bool,
    frozen: BaseWeights,
    grads_TN: Sequence[Tensor],
    a_RK: Sequence[Tensor],
    b_NR: Sequence[Tensor],
    scalings: Sequence[float],
) -> Tensor:
    """The sum of every layer's g W, or g (W + s B A)."""
    total: Tensor | None = None
    for i, grad_TN in enumerate(grads_TN):
        merged = (i, a_RK[i], b_NR[i], scalings[i])
        weight_NK = cpu.merged(frozen, *merged) if merges else frozen.dense(i)
        total = grad_TN @ weight_NK if total is None else total.addmm_(grad_TN, weight_NK)
    assert total is not None
    return total


def _scaled(b_NR: Sequence[Tensor], scalings: Sequence[float]) -> list[Tensor]:
    return [(scaling * b).T.contiguous() for b, scaling in zip(b_NR, scalings, strict=True)]
