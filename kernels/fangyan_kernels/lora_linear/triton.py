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
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fangyan_kernels.capability import has_tensor_cores
from fangyan_kernels.launching import launch
from fangyan_kernels.lora_linear import triton_merge
from fangyan_kernels.lora_linear.frozen import Frozen
from fangyan_kernels.lora_linear.reference import threshold
from fangyan_kernels.lora_linear.triton_tails import expand, finish, outer, shrink

# Of layers that share a pass; also of one.
LARGEST_RANK = 256
# Up to it g B is made in the same pass as g' low, as sums over strips of 256 columns, 4 T R N / 256 bytes: at
# R = 32 a quarter of g. Beyond it these sums would cost what the second pass over g does.
MOST_IN_ONE_PASS = 32
# What ``outer`` has on a multiprocessor at once, by its registers; more programs only make more partial sums.
PROGRAMS = 3


class Mask(NamedTuple):
    """What of x reaches the adapters."""

    seed: Tensor | None
    threshold: int
    scale: float

    @classmethod
    def of(cls, seed: Tensor | None, dropout: float) -> Mask:
        return NOTHING_DROPPED if seed is None else cls(seed, threshold(dropout), 1.0 / (1.0 - dropout))


NOTHING_DROPPED = Mask(None, 0, 1.0)


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
    frozen = Frozen(input_TK, weights, b_NR, scales, blocks, quant_type)
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
    frozen = Frozen(input_TK, weights, b_NR, scales, blocks, quant_type)
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


def launch_shrink(
    matrix_TK: Tensor, a_RK: Tensor, low_TR: Tensor, mask: Mask = NOTHING_DROPPED, factor: float = 1.0
) -> None:
    """low = factor (D * matrix) A', D of zeros and ones."""
    (tokens, inner), rank = matrix_TK.shape, len(a_RK)
    if tokens:
        options = _tiles("shrink", rank, matrix_TK)
        launch(
            shrink,
            (blocks_of(tokens, options["BLOCK_T"]), 1),
            (matrix_TK, a_RK, low_TR, mask.seed),
            (tokens, mask.threshold, factor),
            (inner, rank, *a_RK.stride(), low_TR.stride(0)),
            options,
        )


def launch_expand(
    low_TR: Tensor,
    a_RK: Tensor | None,
    out_TK: Tensor | None,
    mask: Mask = NOTHING_DROPPED,
    bias_K: Tensor | None = None,
    factor: float = 1.0,
    total_TR: Tensor | None = None,
) -> None:
    """out = D * (factor low A) + bias, D of zeros and ones.

    Where ``total_TR`` is given, low is (S, T, R), and its sum over S is used and stored there; ``a_RK`` and
    ``out_TK`` may then be None.
    """
    (tokens, rank), columns = low_TR.shape[-2:], 0 if out_TK is None else out_TK.shape[1]
    if tokens:
        options = _tiles("expand", rank, low_TR if total_TR is None else total_TR)
        strides = (0, 0) if a_RK is None else a_RK.stride()
        launch(
            expand,
            (blocks_of(tokens, options["BLOCK_T"]), max(1, blocks_of(columns, options["SPAN"]))),
            (low_TR, a_RK, bias_K, out_TK, total_TR, mask.seed),
            (tokens, len(low_TR), mask.threshold, factor),
            (columns, rank, low_TR.stride(-2), *strides, 0 if total_TR is None else total_TR.stride(0)),
            options,
        )


def launch_outer(
    matrix_TK: Tensor,
    low_TR: Tensor,
    mask: Mask = NOTHING_DROPPED,
    b_KR: Tensor | None = None,
    factor: float = 1.0,
) -> tuple[Tensor, Tensor | None]:
    """(D * matrix)' low, (P, K, R): a sum for each part of the tokens.

    With ``b_KR`` also factor matrix B, (S, T, R): a sum for each strip of the columns.
    """
    (tokens, inner), rank = matrix_TK.shape, low_TR.shape[1]
    options = _tiles("outer", rank, matrix_TK)
    strips = blocks_of(inner, options["BLOCK_K"])
    length, parts = _parts(tokens, strips, rank, options["BLOCK_T"], matrix_TK.device)
    sums_PKR = matrix_TK.new_empty((parts, inner, rank), dtype=torch.float32)
    products_STR = None
    if b_KR is not None:
        products_STR = matrix_TK.new_empty((strips, tokens, rank), dtype=torch.float32)
    launch(
        outer,
        (strips, parts),
        (matrix_TK, low_TR, sums_PKR, b_KR, products_STR, mask.seed),
        (tokens, length, mask.threshold, factor),
        (inner, rank, low_TR.stride(0), *((0, 0) if b_KR is None else b_KR.stride())),
        options,
    )
    return sums_PKR, products_STR


def launch_finish(
    sums_PKR: Tensor, sums_PNR: Tensor, grad_a_RK: Tensor, grad_b_NR: Tensor, factor: float
) -> None:
    """grad_a = sum over P of the first; grad_b = factor times that of the second."""
    (parts_a, inner, rank), (parts_b, outer, _) = sums_PKR.shape, sums_PNR.shape
    launch(
        finish,
        (blocks_of(max(inner, outer) * rank, FINISH["BLOCK"]), 2),
        (sums_PKR, sums_PNR, grad_a_RK, grad_b_NR),
        (parts_a, parts_b, factor),
        (inner, outer, rank, sums_PKR.stride(1)),
        FINISH,
    )


# Eight parts' elements are loaded at once, 512 of each.
FINISH = {"PARTS": 8, "BLOCK": 512, "num_warps": 4, "num_stages": 1}


@cache
def tiles(kernel: str, rank: int, tensor_cores: bool = True) -> dict[str, int]:
    """Constants, warps and stages of a kernel.

    In 16 bits a program of ``shrink`` has three copies of 8 KB of the matrix under way at R <= 32, of 4 KB
    at R = 64, and there is one for every 32 tokens: at T = 8,192 two per multiprocessor. One of ``outer`` has
    two or three of 16 KB, and sums in 64 registers per thread. ``expand`` only writes. Without tensor cores
    the operands of a product are in registers, and tiles have to be smaller.
    """
    block_r = max(16, 1 << (rank - 1).bit_length())
    block_t, block_k, stages = 32, 128 if block_r <= 32 else 64, 3
    if not tensor_cores:
        block_t, block_k = 16, block_k // 2
    elif kernel == "shrink":
        stages = 4
        if block_r > 64:
            block_t, block_k = 64, 8192 // block_r
    elif kernel == "outer":
        block_k = max(64, min(256, 8192 // block_r))
    else:
        block_k, stages = 128 if block_r <= 64 else 64, 2
    span = {"SPAN": 1024} if kernel == "expand" else {}
    shape = {"BLOCK_T": block_t, "BLOCK_K": block_k, "BLOCK_R": block_r}
    return {**span, **shape, "num_warps": 8 if block_r > 128 else 4, "num_stages": stages}


def _tiles(kernel: str, rank: int, matrix: Tensor) -> dict[str, int]:
    return tiles(kernel, rank, matrix.dtype != torch.float32 and has_tensor_cores(matrix.device))


def blocks_of(count: int, size: int) -> int:
    """As ``triton.cdiv``, whose dispatch between host and kernel takes 2 us."""
    return -(-count // size)


def _parts(tokens: int, strips: int, rank: int, block_t: int, device: torch.device) -> tuple[int, int]:
    """Tokens of a part, and the number of parts: enough for every multiprocessor, as long as their sums weigh
    at most half of the matrix."""
    most = max(1, tokens // (4 * rank))
    wanted = max(1, PROGRAMS * _multiprocessors(device) // strips)
    length = blocks_of(blocks_of(tokens, min(wanted, most)), block_t) * block_t
    return max(length, block_t), max(1, blocks_of(tokens, max(length, block_t)))


@cache
def _multiprocessors(device: torch.device) -> int:
    """A few under the interpreter, which runs one program after another."""
    if device.type != "cuda":
        return 2
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


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


def _dense(frozen: Frozen, i: int) -> Tensor:
    return triton_merge.dense(frozen, i) if frozen.quant_type else frozen.dense(i)


def _merged(frozen: Frozen, i: int, a_RK: Tensor, b_NR: Tensor, scaling: float) -> Tensor:
    """W + s B A of layer ``i``."""
    merged = triton_merge.merged if frozen.quant_type else Frozen.merged
    return merged(frozen, i, a_RK, b_NR, scaling)
