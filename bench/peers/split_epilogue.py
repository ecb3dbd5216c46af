"""A LoRA linear cut at its rank-R tensor: the tail is in the epilogue of the large product.

LoRAFusion's algorithm (Zhu et al., EuroSys 2026): low = (D * x) A' is made in one pass over x; then one
product of Triton's gives x W' + low (s B)', and backward one gives g W + D * (g s B A), so that no result
is read again to be added to. The passes that make low and the adapter's gradients are those of our own
kernels, which draw dropout anew where theirs keep a mask; theirs make both of g's small products in one
pass.

Shape suffixes: T tokens, K in, N out, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from fangyan_kernels.lora_linear import triton_tails
from fangyan_kernels.lora_linear.triton_tails import tail
from torch import Tensor

# Tiles of rows, columns and terms, warps and stages, for autotuning to choose from.
TILES = (
    (128, 256, 64, 8, 3),
    (128, 128, 64, 8, 3),
    (128, 128, 32, 4, 4),
    (64, 256, 32, 4, 4),
    (128, 64, 32, 4, 4),
    (64, 64, 32, 4, 3),
)
# The interpreter cannot time them.
CONFIGS = [
    triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, num_warps=warps, num_stages=stages)
    for m, n, k, warps, stages in (TILES[-1:] if triton.knobs.runtime.interpret else TILES)
]


@triton.autotune(CONFIGS, key=["rows", "columns", "inner", "DROPOUT"])
@triton.jit(do_not_specialize=["low", "high", "threshold"])
def product_with_tail(
    p_left,
    p_right,
    p_low,
    p_tail,
    p_out,
    rows,
    columns,
    inner,
    rank,
    stride_inner,
    stride_column,
    low,
    high,
    threshold,
    scale,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """out_mn = sum_k left_mk right_kn + D_mn sum_r low_mr tail_rn; GROUP rows of tiles share columns."""
    i_tile, tiles_m, tiles_n = tl.program_id(0), tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    first = i_tile // (GROUP * tiles_n) * GROUP
    height = min(tiles_m - first, GROUP)
    m = (first + i_tile % (GROUP * tiles_n) % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = i_tile % (GROUP * tiles_n) // height * BLOCK_N + tl.arange(0, BLOCK_N)
    m_m, m_n = m < rows, n < columns
    p_rows = p_left + m.to(tl.int64)[:, None] * inner
    p_columns = p_right + n.to(tl.int64)[None, :] * stride_column
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for o_k in range(0, inner, BLOCK_K):
        k = o_k + tl.arange(0, BLOCK_K)
        m_k = k < inner
        left = tl.load(p_rows + k[None, :], mask=m_m[:, None] & m_k[None, :], other=0.0)
        right = tl.load(
            p_columns + k.to(tl.int64)[:, None] * stride_inner, mask=m_k[:, None] & m_n[None, :], other=0.0
        )
        total = tl.dot(left, right, total, input_precision=PRECISION)
    value = tail(
        *(p_low, p_tail, m, n, rows, columns, rank, rank, low, high, threshold, scale),
        *(DROPOUT, PRECISION, BLOCK_R),
    )
    p_tile = p_out + m.to(tl.int64)[:, None] * columns + n[None, :]
    tl.store(p_tile, total + value, mask=m_m[:, None] & m_n[None, :])


def _product(
    left: Tensor, right: Tensor, low: Tensor, tail: Tensor, seed: Tensor | None, dropout: float
) -> Tensor:
    """left (M, K) @ right (K, N), any strides, + D * (low (M, R) @ tail (R, N))."""
    (rows, inner), columns, rank = left.shape, right.shape[1], len(tail)
    out = left.new_empty((rows, columns))
    options: dict[str, Any] = triton_tails._options(left, rank, seed, dropout)
    kept_options = ("low", "high", "threshold", "scale", "DROPOUT", "PRECISION", "BLOCK_R")

    def grid(tiles: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(rows, tiles["BLOCK_M"]) * triton.cdiv(columns, tiles["BLOCK_N"]),)

    product_with_tail[grid](
        *(left, right, low, tail, out, rows, columns, inner, rank, *right.stride()),
        **{name: options[name] for name in kept_options},
        GROUP=8,
    )
    return out


class SplitEpilogue(torch.autograd.Function):
    """y = x W' + scaling (D * x) A' B', W frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TK: Tensor,
        weight_NK: Tensor,
        a_RK: Tensor,
        b_NR: Tensor,
        scaling: float,
        dropout: float,
    ) -> Tensor:
        seed = torch.randint(2**62, ()) if dropout else None
        tail_RN = (scaling * b_NR).T.contiguous()
        low_TR = triton_tails._shrink(x_TK, a_RK, seed, dropout)
        ctx.save_for_backward(x_TK, weight_NK, a_RK, tail_RN, low_TR)
        ctx.seed, ctx.scaling, ctx.dropout = seed, scaling, dropout
        return _product(x_TK, weight_NK.T, low_TR, tail_RN, None, 0.0)

    @staticmethod
    def backward(ctx: Any, grad_TN: Tensor) -> tuple[Tensor | None, ...]:
        x_TK, weight_NK, a_RK, tail_RN, low_TR = ctx.saved_tensors
        grad_TN = grad_TN.contiguous()
        grad_low_TR = triton_tails._shrink(grad_TN, tail_RN, None, 0.0)
        grad_x_TK = _product(grad_TN, weight_NK, grad_low_TR, a_RK, ctx.seed, ctx.dropout)
        grad_a_RK = triton_tails._outer(grad_low_TR, x_TK, ctx.seed, ctx.dropout).to(a_RK.dtype)
        grad_b_NR = ctx.scaling * triton_tails._outer(low_TR, grad_TN, None, 0.0).T
        return grad_x_TK, None, grad_a_RK, grad_b_NR.to(a_RK.dtype), None, None
