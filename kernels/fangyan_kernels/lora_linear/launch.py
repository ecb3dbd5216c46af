"""The operator on a GPU: cuBLAS's products with the frozen weights, Triton's low-rank ones around them.

The low-rank part of an output is written first, s low B' + bias, and cuBLAS adds the large product to it,
which reads it tile by tile as it writes: adding to a finished product would be a pass of its own. The
gradient of the input likewise: D * (s g B A) first, g W added. ``low`` is kept for the backward, T R elements
beside the T K of the input.

    forward:   shrink x -> low;  expand low -> y;  y += x W'
    backward:  outer_product g -> g B, g' low;  expand g B -> dX;  dX += g W;  outer_product x -> grad_A;
               reduce_partials

Bytes in 16 bits: 4 T K + 2 T N forward and 6 T K + 4 T N backward beside the frozen layer's own.

Shape suffixes: T tokens, K in, N out, R rank; P partial sums over the tokens, S strips of columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fangyan_kernels.lora_linear import triton_merge
from fangyan_kernels.lora_linear.base_weights import BaseWeights
from fangyan_kernels.lora_linear.triton_launches import (
    NOTHING_DROPPED,
    Mask,
    launch_expand,
    launch_outer_product,
    launch_reduce,
    launch_shrink,
)
from fangyan_kernels.ops.lora_linear import Layers

# Largest total rank of adapters computed in one pass.
LARGEST_RANK = 256
# Up to it g B is computed in the same pass as g' low, as sums over strips of 256 columns, 4 T R N / 256
# bytes: at R = 32 a quarter of g. Beyond it these sums would cost as much as the second pass over g.
MAX_RANK_IN_ONE_PASS = 32


def forward(*arguments: Any) -> tuple[list[Tensor], Tensor]:
    """Compute the operator ``fangyan::lora_linear``."""
    *inputs, keep_low = arguments
    layers = _contiguous(Layers(*inputs))
    weights, input_TK = BaseWeights(layers), layers.input_TK
    biases: Sequence[Tensor | None] = layers.biases_N or [None] * len(layers.weights)
    merges = weights.merges(layers.seed is not None)
    low_TR = input_TK.new_empty(0)
    if keep_low or not merges:
        low_TR = all_low(input_TK, layers.a_RK, Mask.of(layers.seed, layers.dropout))
    outputs_TN = []
    for i, columns in enumerate(_columns([len(a) for a in layers.a_RK])):
        weight_NK = _weight(weights, layers, i, merges)
        if merges:
            outputs_TN.append(F.linear(input_TK, weight_NK, biases[i]))
            continue
        output_TN = input_TK.new_empty(weights.tokens, weights.out_features[i])
        low = _slice(low_TR, columns)
        launch_expand(low, layers.b_NR[i].t(), output_TN, bias_K=biases[i], factor=layers.scalings[i])
        outputs_TN.append(output_TN.addmm_(input_TK, weight_NK.t()))
    return outputs_TN, low_TR if keep_low else input_TK.new_empty(0)


def backward(
    grads_TN: Sequence[Tensor], *arguments: Any
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Compute the operator ``fangyan::lora_linear_backward``."""
    *inputs, low_TR, wants_input, wants_adapters, wants_biases = arguments
    layers, grads_TN = _contiguous(Layers(*inputs)), [grad.contiguous() for grad in grads_TN]
    weights, input_TK = BaseWeights(layers), layers.input_TK
    mask, merges = Mask.of(layers.seed, layers.dropout), weights.merges(layers.seed is not None)
    grad_input_TK = torch.empty_like(input_TK) if wants_input else input_TK.new_empty(0)
    grads_a: list[Tensor] = []
    grads_b: list[Tensor] = []
    expands = wants_input and not merges
    if wants_adapters or expands:
        if wants_adapters and not low_TR.numel():
            low_TR = all_low(input_TK, layers.a_RK, mask)
        grad_low = _through_b(grads_TN, low_TR if wants_adapters else None, layers, mask, expands)
        if expands:
            _expand_gradients(grad_low, layers.a_RK, grad_input_TK, mask)
        if wants_adapters:
            grads_a, grads_b = _adapter_gradients(grad_low, layers, mask)
    for i, grad_TN in enumerate(grads_TN if wants_input else ()):
        weight_NK = _weight(weights, layers, i, merges)
        if merges and i == 0:
            torch.mm(grad_TN, weight_NK, out=grad_input_TK)
        else:
            grad_input_TK.addmm_(grad_TN, weight_NK)
    grads_bias = [grad_TN.sum(0) for grad_TN in grads_TN] if wants_biases else []  # summed in float32
    return grad_input_TK, grads_a, grads_b, grads_bias


def _contiguous(layers: Layers) -> Layers:
    return layers._replace(input_TK=layers.input_TK.contiguous())


class _GradLow(NamedTuple):
    """Results of one pass over each output's gradient.

    Attributes:
        total_TR: the gradients of low of all layers, side by side; with ``products`` still to be written.
        products_STR: that of the only layer, one sum per strip of columns.
        sums_PNR: for each layer, the partial sums of g' low.
    """

    total_TR: Tensor
    products_STR: Tensor | None
    sums_PNR: list[Tensor]


def all_low(input_TK: Tensor, a_RK: Sequence[Tensor], mask: Mask) -> Tensor:
    """Compute (D * x) A' of all layers side by side, (T, R): one pass over the input per 256 ranks."""
    low_TR = input_TK.new_empty(len(input_TK), sum(map(len, a_RK)))
    for group, columns in _groups([len(a) for a in a_RK]):
        launch_shrink(input_TK, _joined(a_RK[group]), _slice(low_TR, columns), mask, mask.scale)
    return low_TR


def _through_b(
    grads_TN: Sequence[Tensor], low_TR: Tensor | None, layers: Layers, mask: Mask, expands: bool
) -> _GradLow:
    """Pass once over each output's gradient; ``low_TR`` is None where B's gradient is not wanted."""
    ranks = [b.shape[1] for b in layers.b_NR]
    total_TR, products, sums = grads_TN[0].new_empty(len(grads_TN[0]), sum(ranks)), None, []
    for i, columns in enumerate(_columns(ranks)):
        grad_TN, b_NR, factor = grads_TN[i], layers.b_NR[i], layers.scalings[i] * mask.scale
        own_TR = _slice(total_TR, columns)
        in_one_pass = low_TR is not None and b_NR.shape[1] <= MAX_RANK_IN_ONE_PASS
        if not in_one_pass:
            launch_shrink(grad_TN, b_NR.t(), own_TR, NOTHING_DROPPED, factor)
        if low_TR is None:
            continue
        low = _slice(low_TR, columns)
        b_once = b_NR if in_one_pass else None
        sums_PNR, products = launch_outer_product(grad_TN, low, NOTHING_DROPPED, b_once, factor)
        sums.append(sums_PNR)
        if products is not None and not (expands and len(layers.b_NR) == 1):
            launch_expand(products, None, None, NOTHING_DROPPED, total_TR=own_TR)
            products = None
    return _GradLow(total_TR, products, sums)


def _expand_gradients(grad_low: _GradLow, a_RK: Sequence[Tensor], grad_input_TK: Tensor, mask: Mask) -> None:
    """Compute grad_input = D * (grad_low A), summed over the layers."""
    total_TR, products, _ = grad_low
    if products is not None:
        launch_expand(products, a_RK[0], grad_input_TK, mask, total_TR=total_TR)
        return
    for group, columns in _groups([len(a) for a in a_RK]):
        out_TK = grad_input_TK if not group.start else torch.empty_like(grad_input_TK)
        launch_expand(_slice(total_TR, columns), _joined(a_RK[group]), out_TK, mask)
        if group.start:
            grad_input_TK += out_TK


def _adapter_gradients(grad_low: _GradLow, layers: Layers, mask: Mask) -> tuple[list[Tensor], list[Tensor]]:
    """Compute the gradients of every A and B: one pass over the input per 256 ranks."""
    grads_a = [a.new_empty(a.shape) for a in layers.a_RK]
    grads_b = [b.new_empty(b.shape) for b in layers.b_NR]
    ranks = [len(a) for a in layers.a_RK]
    columns = _columns(ranks)
    for group, all_columns in _groups(ranks):
        low = _slice(grad_low.total_TR, all_columns)
        sums_PKR, _ = launch_outer_product(layers.input_TK, low, mask)
        for i in range(*group.indices(len(ranks))):
            start, end = columns[i].start - all_columns.start, columns[i].stop - all_columns.start
            own_PKR = _slice(sums_PKR, slice(start, end))
            launch_reduce(own_PKR, grad_low.sums_PNR[i], grads_a[i], grads_b[i], layers.scalings[i])
    return grads_a, grads_b


def _groups(ranks: Sequence[int]) -> list[tuple[slice, slice]]:
    """Group neighbouring layers, and their columns of low, whose ranks together fit one block."""
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
    """Return the columns of low of each layer."""
    return [slice(*pair) for pair in itertools.pairwise([0, *itertools.accumulate(ranks)])]


def _slice(matrix: Tensor, columns: slice) -> Tensor:
    """Return columns of a matrix; a view of all of them would only cost time."""
    return matrix if columns.stop - columns.start == matrix.shape[-1] else matrix[..., columns]


def _joined(a_RK: Sequence[Tensor]) -> Tensor:
    return a_RK[0] if len(a_RK) == 1 else torch.cat(list(a_RK))


def _weight(weights: BaseWeights, layers: Layers, i: int, merges: bool) -> Tensor:
    """Return W of layer ``i``, or W + s B A."""
    if not merges:
        return triton_merge.dense(weights, i) if weights.quant_type else weights.dense(i)
    merged = triton_merge.merged if weights.quant_type else BaseWeights.merged
    return merged(weights, i, layers.a_RK[i], layers.b_NR[i], layers.scalings[i])
