"""The low-rank products of LoRA linears on the CPU: ``csrc/lora_linear.cpp``, in float32.

Shape suffixes: T tokens, K in, N out, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor


def forward_(
    output_TN: Tensor,
    input_TK: Tensor,
    a_RK: Tensor,
    b_RN: Tensor,
    seed: Tensor | None,
    dropout: float,
) -> None:
    """See :class:`fangyan_kernels.lora_linear.products.Tails`."""
    wide_TN = _wide(output_TN)
    torch.ops.fangyan.lora_forward_(wide_TN, _wide(input_TK), _wide(a_RK), _wide(b_RN), seed, dropout)
    if wide_TN is not output_TN:
        output_TN.copy_(wide_TN)


def backward_(
    grad_TN: Tensor,
    input_TK: Tensor,
    a_RK: Tensor,
    b_RN: Tensor,
    seed: Tensor | None,
    dropout: float,
    grad_input_TK: Tensor | None,
    wants_adapter: bool,
) -> tuple[Tensor, Tensor]:
    """See :class:`fangyan_kernels.lora_linear.products.Tails`."""
    wide_TK = None if grad_input_TK is None else _wide(grad_input_TK)
    factors = _wide(grad_TN), _wide(input_TK), _wide(a_RK), _wide(b_RN)
    gradients: tuple[Tensor, Tensor] = torch.ops.fangyan.lora_backward_(
        *factors, seed, dropout, wide_TK, wants_adapter
    )
    if grad_input_TK is not None and wide_TK is not None and wide_TK is not grad_input_TK:
        grad_input_TK.copy_(wide_TK)
    return gradients


def _wide(matrix: Tensor) -> Tensor:
    return matrix.float().contiguous()
