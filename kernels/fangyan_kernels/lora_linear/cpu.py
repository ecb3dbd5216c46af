"""The low-rank products of LoRA linears on the CPU: ``csrc/lora_linear.cpp``, in float32.

In bfloat16 they are the library's, which uses the processor's own bfloat16 instructions: widening x and g
alone would take longer. D * x is then a matrix of its own, which the backward computes again.

Shape suffixes: T tokens, K in, N out, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def forward_(
    outputs_TN: Sequence[Tensor],
    input_TK: Tensor,
    a_RK: Sequence[Tensor],
    b_RN: Sequence[Tensor],
    seed: Tensor | None,
    dropout: float,
) -> None:
    """Add (D * input) A' (s B') to the output of every layer; ``b_RN`` is s B' of each."""
    if input_TK.dtype == torch.bfloat16:
        dropped_TK = _dropped(input_TK, seed, dropout)
        for output_TN, a, b in zip(outputs_TN, a_RK, b_RN, strict=True):
            output_TN.addmm_(dropped_TK @ a.T, b)
        return
    wide_TK = _wide(input_TK)
    for output_TN, a, b in zip(outputs_TN, a_RK, b_RN, strict=True):
        wide_TN = _wide(output_TN)
        torch.ops.fangyan.lora_forward_(wide_TN, wide_TK, _wide(a), _wide(b), seed, dropout)
        if wide_TN is not output_TN:
            output_TN.copy_(wide_TN)


def backward_(
    grads_TN: Sequence[Tensor],
    input_TK: Tensor,
    a_RK: Sequence[Tensor],
    b_RN: Sequence[Tensor],
    seed: Tensor | None,
    dropout: float,
    grad_input_TK: Tensor | None,
    wants_adapters: bool,
) -> list[tuple[Tensor, Tensor]]:
    """Return the gradients of A and s B' of every layer, if wanted.

    The sum of all D * (grad (s B')' A) is added to ``grad_input_TK``, unless that is None.
    """
    if input_TK.dtype == torch.bfloat16:
        grads_low_TR = [grad_TN @ b.T for grad_TN, b in zip(grads_TN, b_RN, strict=True)]
        if grad_input_TK is not None:
            _add_dropped_(grad_input_TK, grads_low_TR, a_RK, seed, dropout)
        if not wants_adapters:
            return []
        dropped_TK = _dropped(input_TK, seed, dropout)
        return [
            (grad_low_TR.T @ dropped_TK, (dropped_TK @ a.T).T @ grad_TN)
            for grad_low_TR, grad_TN, a in zip(grads_low_TR, grads_TN, a_RK, strict=True)
        ]
    gradients = []
    wide_TK = _wide(input_TK)
    total_TK = None if grad_input_TK is None else _wide(grad_input_TK)
    for grad_TN, a, b in zip(grads_TN, a_RK, b_RN, strict=True):
        factors = _wide(grad_TN), wide_TK, _wide(a), _wide(b)
        pair = torch.ops.fangyan.lora_backward_(*factors, seed, dropout, total_TK, wants_adapters)
        if wants_adapters:
            gradients.append(pair)
    if grad_input_TK is not None and total_TK is not None and total_TK is not grad_input_TK:
        grad_input_TK.copy_(total_TK)
    return gradients


def _add_dropped_(
    grad_input_TK: Tensor,
    grads_low_TR: Sequence[Tensor],
    a_RK: Sequence[Tensor],
    seed: Tensor | None,
    dropout: float,
) -> None:
    """Add D * the sum of all grad_low A to grad_input: where elements are dropped, D is drawn once."""
    total_TK = grad_input_TK if seed is None else torch.zeros_like(grad_input_TK)
    for grad_low_TR, a in zip(grads_low_TR, a_RK, strict=True):
        total_TK.addmm_(grad_low_TR, a)
    if seed is not None:
        torch.ops.fangyan.lora_dropout_(grad_input_TK, total_TK, seed, dropout, True)


def _dropped(input_TK: Tensor, seed: Tensor | None, dropout: float) -> Tensor:
    """Return D * input, in bfloat16."""
    if seed is None:
        return input_TK
    input_TK = input_TK.contiguous()
    dropped_TK = torch.empty_like(input_TK)
    torch.ops.fangyan.lora_dropout_(dropped_TK, input_TK, seed, dropout, False)
    return dropped_TK


def _wide(matrix: Tensor) -> Tensor:
    return matrix.float().contiguous()
