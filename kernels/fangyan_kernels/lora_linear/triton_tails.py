"""The low-rank products of LoRA linears on a GPU.

Three kernels: ``shrink`` gives low = (D * x) A', ``expand`` adds D * (low A) to a matrix, ``outer`` gives
low' (D * x). Each reads its large matrix once, 2 T K bytes in bfloat16 (``expand`` also writes it), for
2 T K R operations: at R = 16 that is 16 operations a byte, far below what a tensor core can do, so the
floor is the bytes. Dropout is drawn where x is read or a sum is written, ten integer operations an element.
Accumulation is in float32; low is stored in float32 and rounded to the dtype of x before the next product,
as in plain PyTorch.

``stride`` is that of low's rows, which hold several layers' side by side.

Prefixes inside kernels: p_ pointer, i_ index, o_ offset, m_ mask.
Shape suffixes: T tokens, K in or out, R rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fangyan_kernels.lora_linear import triton_merge
from fangyan_kernels.lora_linear.frozen import Frozen
from fangyan_kernels.lora_linear.reference import threshold

# Programs of ``outer`` that share the tokens; each writes its own sum.
PARTS = 32
# Of layers that share a pass; also of one.
LARGEST_RANK = 256


@triton.jit
def mixed(word):
    """The hash of ``reference.py``, of 32 bits."""
    word ^= word >> 16
    word *= 0x7FEB352D
    word ^= word >> 15
    word *= 0x846CA68B
    return word ^ (word >> 16)


@triton.jit
def kept(t, k, low, high, threshold, scale):
    """D of a tile: scale where an element is kept, else 0."""
    key = mixed(mixed(t.to(tl.uint32) + low.to(tl.uint32)) ^ high.to(tl.uint32))
    bits = mixed(k.to(tl.uint32)[None, :] ^ key[:, None])
    return tl.where(bits >= threshold.to(tl.uint32), scale, 0.0)


@triton.jit(do_not_specialize=["low", "high", "threshold"])
def shrink(
    p_input,
    p_a,
    p_low,
    tokens,
    inner,
    rank,
    low,
    high,
    threshold,
    scale,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """low_tr = sum_k D_tk input_tk a_rk, for a block of tokens."""
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    r = tl.arange(0, BLOCK_R)
    m_t, m_r = t < tokens, r < rank
    total = tl.zeros((BLOCK_T, BLOCK_R), tl.float32)
    for o_k in range(0, inner, BLOCK_K):
        k = o_k + tl.arange(0, BLOCK_K)
        m_k = k < inner
        x = tl.load(
            p_input + t.to(tl.int64)[:, None] * inner + k[None, :],
            mask=m_t[:, None] & m_k[None, :],
            other=0.0,
        )
        if DROPOUT:
            x = (x * kept(t, k, low, high, threshold, scale)).to(p_input.dtype.element_ty)
        a = tl.load(p_a + r[None, :] * inner + k[:, None], mask=m_r[None, :] & m_k[:, None], other=0.0)
        total = tl.dot(x, a, total, input_precision=PRECISION)
    tl.store(p_low + t.to(tl.int64)[:, None] * rank + r[None, :], total, mask=m_t[:, None] & m_r[None, :])


@triton.jit
def tail(
    p_low,
    p_a,
    t,
    k,
    tokens,
    inner,
    rank,
    stride,
    low,
    high,
    threshold,
    scale,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """D_tk sum_r low_tr a_rk of a tile."""
    r = tl.arange(0, BLOCK_R)
    m_t, m_r, m_k = t < tokens, r < rank, k < inner
    z = tl.load(
        p_low + t.to(tl.int64)[:, None] * stride + r[None, :], mask=m_t[:, None] & m_r[None, :], other=0.0
    )
    a = tl.load(p_a + r[:, None] * inner + k[None, :], mask=m_r[:, None] & m_k[None, :], other=0.0)
    value = tl.dot(z.to(p_a.dtype.element_ty), a, input_precision=PRECISION)
    if DROPOUT:
        value *= kept(t, k, low, high, threshold, scale)
    return value


@triton.jit(do_not_specialize=["low", "high", "threshold"])
def expand(
    p_low,
    p_a,
    p_total,
    tokens,
    inner,
    rank,
    stride,
    low,
    high,
    threshold,
    scale,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """total_tk += D_tk sum_r low_tr a_rk, for a block of tokens and of columns."""
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    value = tail(
        *(p_low, p_a, t, k, tokens, inner, rank, stride, low, high, threshold, scale),
        *(DROPOUT, PRECISION, BLOCK_R),
    )
    p_tile = p_total + t.to(tl.int64)[:, None] * inner + k[None, :]
    m_tile = (t < tokens)[:, None] & (k < inner)[None, :]
    tl.store(p_tile, tl.load(p_tile, mask=m_tile, other=0.0) + value, mask=m_tile)


@triton.jit(do_not_specialize=["low", "high", "threshold"])
def outer(
    p_low,
    p_input,
    p_sums,
    tokens,
    inner,
    rank,
    stride,
    low,
    high,
    threshold,
    scale,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """sums_prk = sum_t low_tr D_tk input_tk over the token blocks p, p + P, ...: deterministic."""
    i_part = tl.program_id(1)
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    r = tl.arange(0, BLOCK_R)
    m_k, m_r = k < inner, r < rank
    total = tl.zeros((BLOCK_R, BLOCK_K), tl.float32)
    for o_t in range(i_part * BLOCK_T, tokens, tl.num_programs(1) * BLOCK_T):
        t = o_t + tl.arange(0, BLOCK_T)
        m_t = t < tokens
        z = tl.load(
            p_low + t.to(tl.int64)[None, :] * stride + r[:, None],
            mask=m_t[None, :] & m_r[:, None],
            other=0.0,
        )
        x = tl.load(
            p_input + t.to(tl.int64)[:, None] * inner + k[None, :],
            mask=m_t[:, None] & m_k[None, :],
            other=0.0,
        )
        if DROPOUT:
            x = (x * kept(t, k, low, high, threshold, scale)).to(p_input.dtype.element_ty)
        total = tl.dot(z.to(p_input.dtype.element_ty), x, total, input_precision=PRECISION)
    p_tile = p_sums + (i_part.to(tl.int64) * rank + r[:, None]) * inner + k[None, :]
    tl.store(p_tile, total, mask=m_r[:, None] & m_k[None, :])


def merged(frozen: Frozen, i: int, a_RK: Tensor, b_NR: Tensor, scaling: float) -> Tensor:
    """See :class:`fangyan_kernels.lora_linear.products.Tails`."""
    if not frozen.quant_type:
        return frozen.merged(i, a_RK, b_NR, scaling)
    return triton_merge.merged(frozen, i, a_RK, b_NR, scaling)


def forward_(
    outputs_TN: Sequence[Tensor],
    input_TK: Tensor,
    a_RK: Sequence[Tensor],
    b_RN: Sequence[Tensor],
    seed: Tensor | None,
    dropout: float,
) -> None:
    """See :class:`fangyan_kernels.lora_linear.products.Tails`: one pass over the input for all layers."""
    for part in _parts(a_RK):
        low_TR = _shrink(input_TK, torch.cat(list(a_RK[part])), seed, dropout)
        for low, b, output_TN in zip(_split(low_TR, a_RK[part]), b_RN[part], outputs_TN[part], strict=True):
            _expand(low, b, output_TN, None, 0.0)


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
    """See :class:`fangyan_kernels.lora_linear.products.Tails`: layers share passes over the input."""
    gradients: list[tuple[Tensor, Tensor]] = []
    for part in _parts(a_RK):
        each = [_shrink(grad, b, None, 0.0) for grad, b in zip(grads_TN[part], b_RN[part], strict=True)]
        a_all, grad_low_TR = torch.cat(list(a_RK[part])), torch.cat(each, 1)
        if grad_input_TK is not None:
            _expand(grad_low_TR, a_all, grad_input_TK, seed, dropout)
        if wants_adapters:
            low_TR = _shrink(input_TK, a_all, seed, dropout)
            grads_a = _outer(grad_low_TR, input_TK, seed, dropout).split([len(a) for a in a_RK[part]])
            lows = zip(_split(low_TR, a_RK[part]), grads_TN[part], strict=True)
            grads_b = [_outer(low, grad_TN, None, 0.0) for low, grad_TN in lows]
            gradients += zip(grads_a, grads_b, strict=True)
    return gradients


def _parts(a_RK: Sequence[Tensor]) -> list[slice]:
    """Neighbouring layers whose ranks together are one block of the kernels."""
    bounds, rank = [0], 0
    for i, a in enumerate(a_RK):
        if rank + len(a) > LARGEST_RANK:
            bounds.append(i)
            rank = 0
        rank += len(a)
    return [slice(first, last) for first, last in itertools.pairwise([*bounds, len(a_RK)])]


def _split(low_TR: Tensor, a_RK: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return low_TR.split([len(a) for a in a_RK], 1)


def _shrink(input_TK: Tensor, a_RK: Tensor, seed: Tensor | None, dropout: float) -> Tensor:
    input_TK, a_RK = input_TK.contiguous(), a_RK.contiguous()
    (tokens, inner), rank = input_TK.shape, len(a_RK)
    low_TR = input_TK.new_empty((tokens, rank), dtype=torch.float32)
    if tokens:
        options = _options(input_TK, rank, seed, dropout)
        grid = (triton.cdiv(tokens, options["BLOCK_T"]),)
        shrink[grid](input_TK, a_RK, low_TR, tokens, inner, rank, **options)
    return low_TR


def _expand(low_TR: Tensor, a_RK: Tensor, total_TK: Tensor, seed: Tensor | None, dropout: float) -> None:
    a_RK = a_RK.contiguous()
    (rank, inner), tokens = a_RK.shape, len(low_TR)
    if tokens:
        options = _options(total_TK, rank, seed, dropout)
        grid = (triton.cdiv(tokens, options["BLOCK_T"]), triton.cdiv(inner, options["BLOCK_K"]))
        expand[grid](low_TR, a_RK, total_TK, tokens, inner, rank, low_TR.stride(0), **options)


def _outer(low_TR: Tensor, input_TK: Tensor, seed: Tensor | None, dropout: float) -> Tensor:
    input_TK = input_TK.contiguous()
    (tokens, inner), rank = input_TK.shape, low_TR.shape[1]
    options = _options(input_TK, rank, seed, dropout)
    parts = max(1, min(PARTS, triton.cdiv(tokens, options["BLOCK_T"])))
    sums_PRK = input_TK.new_empty((parts, rank, inner), dtype=torch.float32)
    grid = (triton.cdiv(inner, options["BLOCK_K"]), parts)
    outer[grid](low_TR, input_TK, sums_PRK, tokens, inner, rank, low_TR.stride(0), **options)
    return sums_PRK.sum(0)


def launch(rank: int) -> dict[str, int]:
    """Blocks, warps and stages of a rank: by analysis, none has been timed on a GPU."""
    block_r = max(16, triton.next_power_of_2(rank))
    if block_r <= 64:
        return {"BLOCK_T": 64, "BLOCK_K": 64, "BLOCK_R": block_r, "num_warps": 4, "num_stages": 2}
    return {"BLOCK_T": 32, "BLOCK_K": 64, "BLOCK_R": block_r, "num_warps": 8, "num_stages": 2}


def _options(matrix: Tensor, rank: int, seed: Tensor | None, dropout: float) -> dict[str, Any]:
    bits = 0 if seed is None else int(seed) % 2**64
    return {
        "low": bits & 0xFFFFFFFF,
        "high": bits >> 32,
        "threshold": threshold(dropout),
        "scale": 1.0 / (1.0 - dropout),
        "DROPOUT": seed is not None,
        "PRECISION": "ieee" if matrix.dtype == torch.float32 else "tf32",
        **launch(rank),
    }
