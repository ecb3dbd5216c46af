"""Linear layers with low-rank adapters on the CPU: libtorch's products, arranged so that few are left.

Without dropout, s B A is added to a copy of W: 2 N K R operations and 3 N K numbers moved, however many
tokens there are. The forward is then the frozen layer's one product, and so is the gradient of the input;
what remains are the adapters' own gradients. With dropout, x and D * x differ and the low-rank products
stay. Either way everything that is not a product with W is done a chunk of tokens at a time, while the
chunk is in the cache: x and the gradient of y are read once, whatever the number of products.

    forward + backward, merged:  4 T K N + (4 K + 4 N) T R + 4 N K R operations
    forward + backward, dropout: 4 T K N + (6 K + 6 N) T R operations

Merging rounds W + s B A to float32, no worse than the products round; in 16 bits it would lose small
adapters, so there only a 4-bit W, which is rounded to 16 bits anyway, is merged (in float32, rounded once).

Shape suffixes: T tokens, K in, N out, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fangyan_kernels.lora_linear.frozen import Frozen


def lora_linear(
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
        merged = (frozen.merged(i, a_RK[i], b_NR[i], scalings[i]) for i in range(len(weights)))
        return [F.linear(input_TK, weight_NK, bias) for weight_NK, bias in zip(merged, biases, strict=True)]
    outputs = [F.linear(input_TK, frozen.dense(i), biases[i]) for i in range(len(weights))]
    wide_TK = input_TK.float().contiguous()
    for output_TN, a, b_RN in zip(outputs, a_RK, _scaled(b_NR, scalings), strict=True):
        wide_TN = output_TN.float()
        torch.ops.fangyan.lora_forward_(wide_TN, wide_TK, a.float().contiguous(), b_RN, seed, dropout)
        if wide_TN is not output_TN:
            output_TN.copy_(wide_TN)
    return outputs


def lora_linear_backward(
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
    grad_input_TK = input_TK.new_empty(0)
    if wants_input:
        for i, grad_TN in enumerate(grads_TN):
            weight_NK = frozen.merged(i, a_RK[i], b_NR[i], scalings[i]) if merges else frozen.dense(i)
            if i == 0:
                grad_input_TK = grad_TN @ weight_NK
            else:
                grad_input_TK.addmm_(grad_TN, weight_NK)
    wide_TK = input_TK.float().contiguous()
    wide_TN = [grad_TN.float().contiguous() for grad_TN in grads_TN]
    rest_TK = None if merges or not wants_input else grad_input_TK.float()
    gradients = []
    if wants_adapters or rest_TK is not None:
        for grad_TN, a, b_RN in zip(wide_TN, a_RK, _scaled(b_NR, scalings), strict=True):
            factors = a.float().contiguous(), b_RN
            gradients.append(
                torch.ops.fangyan.lora_backward_(
                    grad_TN, wide_TK, *factors, seed, dropout, rest_TK, wants_adapters
                )
            )
    if rest_TK is not None:
        grad_input_TK = rest_TK.to(input_TK.dtype)
    dtype = input_TK.dtype
    if not wants_adapters:
        gradients = []
    return (
        grad_input_TK,
        [grad_a.to(dtype) for grad_a, _ in gradients],
        [(s * grad_b.T).to(dtype) for s, (_, grad_b) in zip(scalings, gradients, strict=False)],
        [grad_TN.sum(0).to(dtype) for grad_TN in wide_TN] if wants_biases else [],
    )


def _merges(frozen: Frozen, seed: Tensor | None) -> bool:
    """Whether a merged weight costs less than the low-rank products, and rounds no worse."""
    if seed is not None or (frozen.dtype != torch.float32 and not frozen.quant_type):
        return False
    outer = sum(frozen.outer)
    return frozen.tokens * (frozen.inner + outer) >= 2 * frozen.inner * outer


def _scaled(b_NR: Sequence[Tensor], scalings: Sequence[float]) -> list[Tensor]:
    """s B', (R, N), contiguous."""
    return [(s * b.float()).T.contiguous() for b, s in zip(b_NR, scalings, strict=True)]
