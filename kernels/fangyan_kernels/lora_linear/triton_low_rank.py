"""The low-rank products of LoRA linears on a GPU.

Four kernels. ``shrink`` makes low = (D * x) A' of a matrix, ``expand`` writes low A (and a bias), ``outer``
makes (D * x)' low and, in the same pass, x B of the same matrix; ``finish`` adds up what the programs of
``outer`` have summed. The first three each read or write their large matrix once, 2 T K bytes in bfloat16,
for 2 T K R operations: at R = 16 that is 16 operations per byte, far below what a tensor core can do, so the
floor is the bytes. What counts on the way there is how many are under way: a Hopper card moves 23 bytes per
nanosecond and multiprocessor, so 20 KB have to be in flight on each.

Dropout is drawn anew wherever x is read or its gradient written, 10 integer operations per element: the mask
picks elements, and 1 / (1 - p) multiplies the R sums of a token in place of its K elements.

Accumulation is in float32. low is rounded to the dtype of x, as the next product rounds it in plain PyTorch.
Nothing is added by atomics: the order of every sum follows from the shapes and the number of multiprocessors.

Numbers that change from batch to batch are not specialized on: a layer has one variant of each kernel.

Prefixes inside kernels: p_ pointer, i_ index, o_ offset, m_ mask.
Shape suffixes: T tokens, K in or out, R rank.
"""

from __future__ import annotations

import triton
import triton.language as tl

_VARYING = ["tokens", "tokens_per_part", "parts", "threshold", "factor"]


@triton.jit
def folded(word):
    return word ^ (word >> 16)


@triton.jit
def stirred(word):
    """What the hash of ``reference.py`` does to a word after its first folding."""
    word *= 0x7FEB352D
    word ^= word >> 15
    word *= 0x846CA68B
    return folded(word)


@triton.jit
def keys(seed, t):
    """The folded keys of rows."""
    first, second = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    return folded(stirred(folded(stirred(folded(t.to(tl.uint32) + first)) ^ second)))


@triton.jit
def kept(key, k, threshold):
    """The elements of a tile that are not dropped. Folding is linear: rows and columns are folded apart."""
    return stirred(folded(k.to(tl.uint32))[None, :] ^ key[:, None]) >= threshold.to(tl.uint32)


@triton.jit(do_not_specialize=_VARYING)
def shrink(
    p_input,
    p_a,
    p_low,
    p_seed,
    tokens,
    threshold: tl.uint32,
    factor: tl.float32,
    inner,
    rank,
    stride_r,
    stride_k,
    stride_low,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """low_tr = factor sum_k D_tk input_tk a_rk, for a block of tokens; D is 0 or 1."""
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    r = tl.arange(0, BLOCK_R)
    m_t, m_r = t < tokens, r < rank
    o_t = t.to(tl.int64)[:, None]
    total = tl.zeros((BLOCK_T, BLOCK_R), tl.float32)
    if p_seed is not None:
        key = keys(tl.load(p_seed), t)
    for o_k in range(0, inner, BLOCK_K):
        k = o_k + tl.arange(0, BLOCK_K)
        m_k = k < inner
        x = tl.load(p_input + o_t * inner + k[None, :], mask=m_t[:, None] & m_k[None, :], other=0.0)
        a = tl.load(
            p_a + r[None, :] * stride_r + k[:, None] * stride_k, mask=m_r[None, :] & m_k[:, None], other=0.0
        )
        if p_seed is not None:
            x = tl.where(kept(key, k, threshold), x, 0.0)
        total = tl.dot(x, a, total, input_precision="ieee")
    tl.store(p_low + o_t * stride_low + r[None, :], factor * total, mask=m_t[:, None] & m_r[None, :])


@triton.jit(do_not_specialize=_VARYING)
def expand(
    p_low,
    p_a,
    p_bias,
    p_out,
    p_sum,
    p_seed,
    tokens,
    parts,
    threshold: tl.uint32,
    factor: tl.float32,
    columns,
    rank,
    stride_low,
    stride_r,
    stride_k,
    stride_sum,
    SPAN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """out_tk = D_tk factor sum_r low_tr a_rk + bias_k, for a block of tokens and SPAN columns.

    With ``p_sum``, low is the sum of ``parts`` matrices, and is stored there; out is then optional.
    """
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    r = tl.arange(0, BLOCK_R)
    m_t, m_r = t < tokens, r < rank
    o_t = t.to(tl.int64)[:, None]
    m_low = m_t[:, None] & m_r[None, :]
    if p_sum is not None:
        total = tl.zeros((BLOCK_T, BLOCK_R), tl.float32)
        for _ in range(0, parts):
            total += tl.load(p_low + o_t * stride_low + r[None, :], mask=m_low, other=0.0)
            p_low += tokens.to(tl.int64) * stride_low
        low = total.to(p_sum.dtype.element_ty)
        if tl.program_id(1) == 0:
            tl.store(p_sum + o_t * stride_sum + r[None, :], low, mask=m_low)
    else:
        low = tl.load(p_low + o_t * stride_low + r[None, :], mask=m_low, other=0.0)
    if p_seed is not None:
        key = keys(tl.load(p_seed), t)
    if p_out is not None:
        first = tl.program_id(1) * SPAN
        for o_k in range(first, min(first + SPAN, columns), BLOCK_K):
            k = o_k + tl.arange(0, BLOCK_K)
            m_k = k < columns
            a = tl.load(
                p_a + r[:, None] * stride_r + k[None, :] * stride_k,
                mask=m_r[:, None] & m_k[None, :],
                other=0.0,
            )
            value = factor * tl.dot(low, a, input_precision="ieee")
            if p_bias is not None:
                value += tl.load(p_bias + k, mask=m_k, other=0.0).to(tl.float32)[None, :]
            if p_seed is not None:
                value = tl.where(kept(key, k, threshold), value, 0.0)
            tl.store(p_out + o_t * columns + k[None, :], value, mask=m_t[:, None] & m_k[None, :])


@triton.jit(do_not_specialize=_VARYING)
def outer(
    p_input,
    p_low,
    p_sums,
    p_b,
    p_products,
    p_seed,
    tokens,
    tokens_per_part,
    threshold: tl.uint32,
    factor: tl.float32,
    inner,
    rank,
    stride_low,
    stride_k,
    stride_r,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """sums_pkr = sum_t D_tk input_tk low_tr over the tokens of part p, for a strip s of columns.

    With ``p_b`` also products_str = factor sum_k input_tk b_kr over the columns of the strip.
    """
    i_strip, i_part = tl.program_id(0), tl.program_id(1)
    k = i_strip * BLOCK_K + tl.arange(0, BLOCK_K)
    r = tl.arange(0, BLOCK_R)
    m_k, m_r = k < inner, r < rank
    if p_b is not None:
        b = tl.load(
            p_b + k[:, None] * stride_k + r[None, :] * stride_r, mask=m_k[:, None] & m_r[None, :], other=0.0
        )
    if p_seed is not None:
        seed = tl.load(p_seed)
    total = tl.zeros((BLOCK_K, BLOCK_R), tl.float32)
    first = i_part * tokens_per_part
    for o_t in range(first, min(first + tokens_per_part, tokens), BLOCK_T):
        t = o_t + tl.arange(0, BLOCK_T)
        m_t = t < tokens
        wide = t.to(tl.int64)[:, None]
        m_low = m_t[:, None] & m_r[None, :]
        x = tl.load(p_input + wide * inner + k[None, :], mask=m_t[:, None] & m_k[None, :], other=0.0)
        low = tl.load(p_low + wide * stride_low + r[None, :], mask=m_low, other=0.0)
        if p_b is not None:
            product = factor * tl.dot(x, b, input_precision="ieee")
            o_strip = i_strip.to(tl.int64) * tokens
            tl.store(p_products + (o_strip + wide) * rank + r[None, :], product, mask=m_low)
        if p_seed is not None:
            x = tl.where(kept(keys(seed, t), k, threshold), x, 0.0)
        total = tl.dot(tl.trans(x), low, total, input_precision="ieee")
    o_sums = (i_part.to(tl.int64) * inner + k[:, None]) * rank + r[None, :]
    tl.store(p_sums + o_sums, total, mask=m_k[:, None] & m_r[None, :])


@triton.jit
def added_up(p_sums, parts, inner, stride, rank, e, PARTS: tl.constexpr):
    """Sums over parts of elements (e // rank, e % rank) of matrices whose rows are ``stride`` apart."""
    m_e = e < inner * rank
    o_e = e // rank * stride + e % rank
    total = tl.zeros(e.shape, tl.float32)
    for o_p in range(0, parts, PARTS):
        p = o_p + tl.arange(0, PARTS)
        part = tl.load(
            p_sums + p.to(tl.int64)[:, None] * inner * stride + o_e[None, :],
            mask=(p < parts)[:, None] & m_e[None, :],
            other=0.0,
        )
        total += tl.sum(part, 0)
    return total


@triton.jit(do_not_specialize=["parts_a", "parts_b", "factor"])
def finish(
    p_sums_a,
    p_sums_b,
    p_grad_a,
    p_grad_b,
    parts_a,
    parts_b,
    factor: tl.float32,
    inner,
    outer,
    rank,
    stride_a,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """grad_a_rk = sum_p sums_a_pkr and grad_b_nr = factor sum_p sums_b_pnr, some programs for each."""
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if tl.program_id(1) == 0:
        total = added_up(p_sums_a, parts_a, inner, stride_a, rank, e, PARTS)
        tl.store(p_grad_a + e % rank * inner + e // rank, total, mask=e < inner * rank)
    else:
        total = added_up(p_sums_b, parts_b, outer, rank, rank, e, PARTS)
        tl.store(p_grad_b + e, factor * total, mask=e < outer * rank)
