"""The operator on the CPU: a library's products with the frozen weights, then ``cpu.py``'s low-rank ones.

Where nothing is dropped, s B A may be added to a copy of W (:meth:`BaseWeights.merges`).

Shape suffixes: T tokens, K in, N out, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fangyan_kernels.lora_linear import cpu
from fangyan_kernels.lora_linear.base_weights import BaseWeights
from fangyan_kernels.ops.lora_linear import Layers


def forward(*arguments: Any) -> tuple[list[Tensor], Tensor]:
    """Compute ``fangyan::lora_linear``; low is not kept: the backward has x's tile in the cache."""
    *inputs, _ = arguments
    layers = Layers(*inputs)
    weights, input_TK = BaseWeights(layers), layers.input_TK
    biases: Sequence[Tensor | None] = layers.biases_N or [None] * len(layers.weights)
    low_TR = input_TK.new_empty(0)
    merges = weights.merges(layers.seed is not None)
    outputs_TN = [F.linear(input_TK, _weight(weights, layers, i, merges), b) for i, b in enumerate(biases)]
    if not merges:
        cpu.forward_(outputs_TN, input_TK, layers.a_RK, _scaled(layers), layers.seed, layers.dropout)
    return outputs_TN, low_TR


def backward(
    grads_TN: Sequence[Tensor], *arguments: Any
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Compute ``fangyan::lora_linear_backward``."""
    *inputs, _, wants_input, wants_adapters, wants_biases = arguments
    layers = Layers(*inputs)
    weights, dtype = BaseWeights(layers), layers.input_TK.dtype
    merges = weights.merges(layers.seed is not None)
    grad_input_TK = _grad_input(grads_TN, weights, layers, merges) if wants_input else None
    grads_a, grads_b = [], []
    if wants_adapters or (wants_input and not merges):
        pairs = cpu.backward_(
            grads_TN,
            layers.input_TK,
            layers.a_RK,
            _scaled(layers),
            layers.seed,
            layers.dropout,
            None if merges else grad_input_TK,
            wants_adapters,
        )
        for (grad_RK, grad_RN), scaling in zip(pairs, layers.scalings, strict=False):  # pairs may be none
            grads_a.append(grad_RK.to(dtype))
            grads_b.append((scaling * grad_RN.T).to(dtype))
    grads_bias = [g.sum(0, dtype=torch.float32).to(dtype) for g in grads_TN] if wants_biases else []
    if grad_input_TK is None:
        grad_input_TK = layers.input_TK.new_empty(0)
    return grad_input_TK, grads_a, grads_b, grads_bias


def _grad_input(grads_TN: Sequence[Tensor], weights: BaseWeights, layers: Layers, merges: bool) -> Tensor:
    """Sum every layer's g W, or g (W + s B A)."""
    total: Tensor | None = None
    for i, grad_TN in enumerate(grads_TN):
        weight_NK = _weight(weights, layers, i, merges)
        total = grad_TN @ weight_NK if total is None else total.addmm_(grad_TN, weight_NK)
    assert total is not None
    return total


def _weight(weights: BaseWeights, layers: Layers, i: int, merges: bool) -> Tensor:
    if merges:
        return weights.merged(i, layers.a_RK[i], layers.b_NR[i], layers.scalings[i])
    return weights.dense(i)


def _scaled(layers: Layers) -> list[Tensor]:
    return [(s * b).T.contiguous() for b, s in zip(layers.b_NR, layers.scalings, strict=True)]
