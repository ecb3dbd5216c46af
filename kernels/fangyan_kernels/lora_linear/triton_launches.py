"""Launches of the low-rank kernels (``triton_low_rank``): tiles, grids and partial sums.

Shape suffixes: T tokens, K in, N out, R rank; P partial sums over the tokens, S strips of columns.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from fangyan_kernels.capability import has_tensor_cores
from fangyan_kernels.launching import launch
from fangyan_kernels.lora_linear.reference import threshold
from fangyan_kernels.lora_linear.triton_low_rank import expand, outer_product, reduce_partials, shrink

# Of ``outer_product`` on a multiprocessor at once, by its registers; more would only make more partial sums.
PROGRAMS = 3


class Mask(NamedTuple):
    """Which elements of x reach the adapters."""

    seed: Tensor | None
    threshold: int
    scale: float

    @classmethod
    def of(cls, seed: Tensor | None, dropout: float) -> Mask:
        """Return the mask of a seed; of None, that of no dropout."""
        return NOTHING_DROPPED if seed is None else cls(seed, threshold(dropout), 1.0 / (1.0 - dropout))


NOTHING_DROPPED = Mask(None, 0, 1.0)


def launch_shrink(
    matrix_TK: Tensor, a_RK: Tensor, low_TR: Tensor, mask: Mask = NOTHING_DROPPED, factor: float = 1.0
) -> None:
    """Compute low = factor (D * matrix) A', D of zeros and ones."""
    (tokens, in_features), rank = matrix_TK.shape, len(a_RK)
    if tokens:
        options = _tiles("shrink", rank, matrix_TK)
        launch(
            shrink,
            (blocks_of(tokens, options["BLOCK_T"]), 1),
            (matrix_TK, a_RK, low_TR, mask.seed),
            (tokens, mask.threshold, factor),
            (in_features, rank, *a_RK.stride(), low_TR.stride(0)),
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
    """Compute out = D * (factor low A) + bias, D of zeros and ones.

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


def launch_outer_product(
    matrix_TK: Tensor,
    low_TR: Tensor,
    mask: Mask = NOTHING_DROPPED,
    b_KR: Tensor | None = None,
    factor: float = 1.0,
) -> tuple[Tensor, Tensor | None]:
    """Compute (D * matrix)' low, (P, K, R), in partial sums over the tokens.

    With ``b_KR`` also factor matrix B, (S, T, R), in partial sums over strips of the columns.
    """
    (tokens, in_features), rank = matrix_TK.shape, low_TR.shape[1]
    options = _tiles("outer_product", rank, matrix_TK)
    strips = blocks_of(in_features, options["BLOCK_K"])
    length, num_partials = _partition(tokens, strips, rank, options["BLOCK_T"], matrix_TK.device)
    sums_PKR = matrix_TK.new_empty((num_partials, in_features, rank), dtype=torch.float32)
    products_STR = None
    if b_KR is not None:
        products_STR = matrix_TK.new_empty((strips, tokens, rank), dtype=torch.float32)
    launch(
        outer_product,
        (strips, num_partials),
        (matrix_TK, low_TR, sums_PKR, b_KR, products_STR, mask.seed),
        (tokens, length, mask.threshold, factor),
        (in_features, rank, low_TR.stride(0), *((0, 0) if b_KR is None else b_KR.stride())),
        options,
    )
    return sums_PKR, products_STR


def launch_reduce(
    sums_PKR: Tensor, sums_PNR: Tensor, grad_a_RK: Tensor, grad_b_NR: Tensor, factor: float
) -> None:
    """Compute grad_a, the sum over P of the first, and grad_b, factor times that of the second."""
    (num_partials_a, in_features, rank), (num_partials_b, out_features, _) = sums_PKR.shape, sums_PNR.shape
    launch(
        reduce_partials,
        (blocks_of(max(in_features, out_features) * rank, REDUCE["BLOCK"]), 2),
        (sums_PKR, sums_PNR, grad_a_RK, grad_b_NR),
        (num_partials_a, num_partials_b, factor),
        (in_features, out_features, rank, sums_PKR.stride(1)),
        REDUCE,
    )


# 32 partial sums are loaded at once, 128 elements of each: a layer of 768 has 132 partial sums of 12,288
# elements, which on an H100 took 27 us as 24 programs that each waited 17 times.
REDUCE = {"BLOCK_P": 32, "BLOCK": 128, "num_warps": 4, "num_stages": 1}


@cache
def tiles(kernel: str, rank: int, tensor_cores: bool = True) -> dict[str, int]:
    """Choose constants, warps and stages of a kernel.

    In 16 bits a program of ``shrink`` has three copies of 8 KB of the matrix under way at R <= 32, of 4 KB
    at R = 64, and there is one per 32 tokens: at T = 8,192 two per multiprocessor. One of ``outer_product``
    has two or three of 16 KB, and sums in 64 registers per thread. ``expand`` only writes. Without tensor
    cores the operands of a product are in registers, and tiles have to be smaller.
    """
    block_r = max(16, 1 << (rank - 1).bit_length())
    block_t, block_k, stages = 32, 128 if block_r <= 32 else 64, 3
    if not tensor_cores:
        block_t, block_k = 16, block_k // 2
    elif kernel == "shrink":
        stages = 4
        if block_r > 64:
            block_t, block_k = 64, 8192 // block_r
    elif kernel == "outer_product":
        block_k = max(64, min(256, 8192 // block_r))
    else:
        block_k, stages = 128 if block_r <= 64 else 64, 2
    span = {"SPAN": 1024} if kernel == "expand" else {}
    shape = {"BLOCK_T": block_t, "BLOCK_K": block_k, "BLOCK_R": block_r}
    return {**span, **shape, "num_warps": 8 if block_r > 128 else 4, "num_stages": stages}


def _tiles(kernel: str, rank: int, matrix: Tensor) -> dict[str, int]:
    return tiles(kernel, rank, matrix.dtype != torch.float32 and has_tensor_cores(matrix.device))


def blocks_of(count: int, size: int) -> int:
    """Divide, rounding up, as ``triton.cdiv``, whose dispatch between host and kernel takes 2 us."""
    return -(-count // size)


def _partition(tokens: int, strips: int, rank: int, block_t: int, device: torch.device) -> tuple[int, int]:
    """Choose the tokens per partial sum and the number of partial sums.

    There are enough for every multiprocessor, as long as they take at most half the bytes of the matrix.
    """
    most = max(1, tokens // (4 * rank))
    wanted = max(1, PROGRAMS * _multiprocessors(device) // strips)
    length = blocks_of(blocks_of(tokens, min(wanted, most)), block_t) * block_t
    return max(length, block_t), max(1, blocks_of(tokens, max(length, block_t)))


@cache
def _multiprocessors(device: torch.device) -> int:
    """Count multiprocessors; a few under the interpreter, which runs one program after another."""
    if device.type != "cuda":
        return 2
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
