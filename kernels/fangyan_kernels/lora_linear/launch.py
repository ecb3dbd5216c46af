"""The operator on a GPU: cuBLAS's products with the frozen weights, Triton's low-rank ones around them.

The low-rank part of an output is written first, s low B' + bias, and cuBLAS adds the large product to it,
which reads it tile by tile as it writes: adding to a finished product would be a pass of its own. The
gradient of the input likewise: D * (s g B A) first, g W added. ``low`` is kept for the backward, T R numbers
beside the T K of the input.

    forward:   shrink x -> low;  expand low -> y;  y += x W'
    backward:  outer g -> g B, g' low;  expand g B -> dX;  dX += g W;  outer x -> grad_A;  finish

Bytes in 16 bits: 4 T K + 2 T N forward and 6 T K + 4 T N backward beside the frozen layer's own.

Shape suffixes: T tokens, K in, N out, R rank; P parts of the tokens, S strips of columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fangyan_kernels.lora_linear import triton_merge
from fangyan_kernels.lora_linear.base_weights import BaseWeights
from fangyan_kernels.lora_linear.triton_launches import (
    NOTHING_DROPPED,
    Mask,
    launch_expand,
    launch_finish,
    launch_outer,
    launch_shrink,
)

# Of layers that share a pass; also of one.
LARGEST_RANK = 256
# Up to it g B is made in the same pass as g' low, as sums over strips of 256 columns, 4 T R N / 256 bytes: at
# R = 32 a quarter of g. Beyond it these sums would cost what the second pass over g does.
MOST_IN_ONE_PASS = 32


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
    """The operator ``fangyan::lora_linear``."""
    frozen = BaseWeights(input_TK, weights, b_NR, scales, blocks, quant_type)
    input_TK = input_TK.contiguous()
    biases: Sequence[Tensor | None] = biases_N or [None] * len(weights)
    merges = frozen.merges(seed is not None)
    low_TR = input_TK.new_empty(0)
    if keep_low or not merges:
        low_TR = all_low(input_TK, a_RK, Mask.of(seed, dropout))
    outputs_TN = []
    for i, columns in enumerate(_columns([len(a) for a in a_RK])):
        if merges:
            weight_NK = _merged(frozen, i, a_RK[i], b_NR[i], scalings[i])
            outputs_TN.append(F.linear(input_TK, weight_NK, biases[i]))
            continue
        output_TN = input_TK.new_empty(frozen.tokens, frozen.outer[i])
        low = _slice(low_TR, columns)
        launch_expand(low, b_NR[i].t(), output_TN, bias_K=biases[i], factor=scalings[i])
        outputs_TN.append(output_TN.addmm_(input_TK, _dense(frozen, i).t()))
    return outputs_TN, low_TR if keep_low else input_TK.new_empty(0)


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
    input_TK, grads_TN = input_TK.contiguous(), [grad.contiguous() for grad in grads_TN]
    mask, merges = Mask.of(seed, dropout), frozen.merges(seed is not None)
    grad_input_TK = torch.empty_like(input_TK) if wants_input else input_TK.new_empty(0)
    grads_a: list[Tensor] = []
    grads_b: list[Tensor] = []
    expands = wants_input and not merges
    if wants_adapters or expands:
        if wants_adapters and not low_TR.numel():
            low_TR = all_low(input_TK, a_RK, mask)
        factors = [scaling * mask.scale for scaling in scalings]
        grad_low = _through_b(grads_TN, low_TR if wants_adapters else None, b_NR, factors, expands)
        if expands:
            _expand_gradients(grad_low, a_RK, grad_input_TK, mask)
        if wants_adapters:
            grads_a, grads_b = _adapter_gradients(grad_low, input_TK, a_RK, b_NR, scalings, mask)
    for i, grad_TN in enumerate(grads_TN if wants_input else ()):
        weight_NK = _merged(frozen, i, a_RK[i], b_NR[i], scalings[i]) if merges else _dense(frozen, i)
        if merges and i == 0:
            torch.mm(grad_TN, weight_NK, out=grad_input_TK)
        else:
            grad_input_TK.addmm_(grad_TN, weight_NK)
    grads_bias = [grad_TN.sum(0) for grad_TN in grads_TN] if wants_biases else []  # summed in float32
    return grad_input_TK, grads_a, grads_b, grads_bias


class _GradLow(NamedTuple):
    """What one pass over each output's gradient leaves.

    Attributes:
        total_TR: the gradients of low of all layers, side by side; with ``products`` still to be written.
        products_STR: those of the only layer, a sum for each strip of columns.
        sums_PNR: of each layer, g' low of each part of the tokens.
    """

    total_TR: Tensor
    products_STR: Tensor | None
    sums_PNR: list[Tensor]


def all_low(input_TK: Tensor, a_RK: Sequence[Tensor], mask: Mask) -> Tensor:
    """(D * x) A' of all layers side by side, (T, R): one pass over the input for every 256 ranks."""
    low_TR = input_TK.new_empty(len(input_TK), sum(map(len, a_RK)))
    for layers, columns in _groups([len(a) for a in a_RK]):
        launch_shrink(input_TK, _joined(a_RK[layers]), _slice(low_TR, columns), mask, mask.scale)
    return low_TR


def _through_b(
    grads_TN: Sequence[Tensor],
    low_TR: Tensor | None,
    b_NR: Sequence[Tensor],
    factors: Sequence[float],
    expands: bool,
) -> _GradLow:
    """``low_TR``: None where the gradients of B are not wanted."""
    ranks = [b.shape[1] for b in b_NR]
    total_TR, products, sums = b_NR[0].new_empty(len(grads_TN[0]), sum(ranks)), None, []
    for grad_TN, b, columns, factor in zip(grads_TN, b_NR, _columns(ranks), factors, strict=True):
        rest = _slice(total_TR, columns)
        in_one_pass = low_TR is not None and b.shape[1] <= MOST_IN_ONE_PASS
        if not in_one_pass:
            launch_shrink(grad_TN, b.t(), rest, NOTHING_DROPPED, factor)
        if low_TR is None:
            continue
        low = _slice(low_TR, columns)
        sums_PNR, products = launch_outer(grad_TN, low, NOTHING_DROPPED, b if in_one_pass else None, factor)
        sums.append(sums_PNR)
        if products is not None and not (expands and len(b_NR) == 1):
            launch_expand(products, None, None, NOTHING_DROPPED, total_TR=rest)
            products = None
    return _GradLow(total_TR, products, sums)


def _expand_gradients(grad_low: _GradLow, a_RK: Sequence[Tensor], grad_input_TK: Tensor, mask: Mask) -> None:
    """grad_input = D * (grad_low A), summed over the layers."""
    total_TR, products, _ = grad_low
    if products is not None:
        launch_expand(products, a_RK[0], grad_input_TK, mask, total_TR=total_TR)
        return
    for layers, columns in _groups([len(a) for a in a_RK]):
        out_TK = grad_input_TK if not layers.start else torch.empty_like(grad_input_TK)
        launch_expand(_slice(total_TR, columns), _joined(a_RK[layers]), out_TK, mask)
        if layers.start:
            grad_input_TK += out_TK


def _adapter_gradients(
    grad_low: _GradLow,
    input_TK: Tensor,
    a_RK: Sequence[Tensor],
    b_NR: Sequence[Tensor],
    scalings: Sequence[float],
    mask: Mask,
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of every A and B: one pass over the input for every 256 ranks."""
    grads_a, grads_b = [a.new_empty(a.shape) for a in a_RK], [b.new_empty(b.shape) for b in b_NR]
    ranks = [len(a) for a in a_RK]
    columns = _columns(ranks)
    for layers, all_columns in _groups(ranks):
        sums_PKR, _ = launch_outer(input_TK, _slice(grad_low.total_TR, all_columns), mask)
        for i in range(*layers.indices(len(a_RK))):
            start, end = columns[i].start - all_columns.start, columns[i].stop - all_columns.start
            own_PKR = _slice(sums_PKR, slice(start, end))
            launch_finish(own_PKR, grad_low.sums_PNR[i], grads_a[i], grads_b[i], scalings[i])
    return grads_a, grads_b


def _groups(ranks: Sequence[int]) -> list[tuple[slice, slice]]:
    """Neighbouring layers, and their columns of low, whose ranks together are one block of the kernels."""
    bounds, rank = [0], 0
    for i, own in enumerate(ranks):
        if rank + own > LARGEST_RANK:
            bounds.append(i)
            rank = 0
        rank += own
    starts = [0, *itertools.accumulate(ranks)]
    pairs = itertools.pairwise([*bounds, len(ranks)])
    return [(slice(first, last), slice(starts[first], starts[last])) for first, last in pairs]


def _columns(ranks: Sequence[int]) -> list[slice]:
    """The columns of low of each layer."""
    return [slice(*pair) for pair in itertools.pairwise([0, *itertools.accumulate(ranks)])]


def _slice(matrix: Tensor, columns: slice) -> Tensor:
    """Columns of a matrix; a view of all of them would only cost time."""
    return matrix if columns.stop - columns.start == matrix.shape[-1] else matrix[..., columns]


def _joined(a_RK: Sequence[Tensor]) -> Tensor:
    return a_RK[0] if len(a_RK) == 1 else torch.cat(list(a_RK))


def _dense(frozen: BaseWeights, i: int) -> Tensor:
    return triton_merge.dense(frozen, i) if frozen.quant_type else frozen.dense(i)


def _merged(frozen: BaseWeights, i: int, a_RK: Tensor, b_NR: Tensor, scaling: float) -> Tensor:
    """W + s B A of layer ``i``."""
    merged = triton_merge.merged if frozen.quant_type else BaseWeights.merged
    return merged(frozen, i, a_RK, b_NR, scaling)
