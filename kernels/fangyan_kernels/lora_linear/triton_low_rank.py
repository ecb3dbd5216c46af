"""The low-rank products of LoRA linears on a GPU.

Four kernels. ``shrink`` computes low = (D * x) A' of a matrix, ``expand`` low A (and a bias),
``outer_product`` (D * x)' low and, in the same pass, x B of the same matrix; ``reduce_partials`` adds up the
partial sums of ``outer_product``. The first three each read or write their large matrix once, 2 T K bytes in
bfloat16, for 2 T K R operations: at R = 16 that is 16 operations per byte, far below what a tensor core can
do, so the floor is the bytes. To reach it, enough of them have to be in flight: a Hopper card moves 23 bytes
per nanosecond and multiprocessor, so 20 KB on each.

Dropout is drawn again wherever x is read or its gradient written, 10 integer operations per element: the mask
picks elements, and 1 / (1 - p) multiplies the R sums of a token in place of its K elements.

Accumulation is in float32. low is rounded to the dtype of x, as the next product rounds it in plain PyTorch.
Nothing is added by atomics: the order of every sum follows from the shapes and the number of multiprocessors.

Integers that change from batch to batch are not specialized on: a layer has one variant of each kernel.

Prefixes inside kernels: p_ pointer, i_ index, o_ offset, m_ mask.
Shape suffixes: T tokens, K in or out, R rank.
"""

from __future__ import annotations

import triton
import triton.language as tl

_VARYING = ["tokens", "tokens_per_partial", "num_partials", "threshold", "factor"]


@triton.jit
def fold(word):
    """Fold the upper half of 32 bits into the lower."""
    return word ^ (word >> 16)


@triton.jit
def mix(word):
    """Apply the hash of ``reference.py`` to a word, after its first folding."""
    word *= 0x7FEB352D
    word ^= word >> 15
    word *= 0x846CA68B
    return fold(word)


@triton.jit
def row_keys(seed, t):
    """Compute the folded keys of rows."""
    seed_lo, seed_hi = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    return fold(mix(fold(mix(fold(t.to(tl.uint32) + seed_lo)) ^ seed_hi)))


@triton.jit
def keep_mask(key, k, threshold):
    """Return which elements of a tile are kept. Folding is linear: rows and columns are folded apart."""
    return mix(fold(k.to(tl.uint32))[None, :] ^ key[:, None]) >= threshold.to(tl.uint32)


@triton.jit(do_not_specialize=_VARYING)
def shrink(
    p_input,
    p_a,
    p_low,
    p_seed,
    tokens,
    threshold: tl.uint32,
    factor: tl.float32,
    in_features,
    rank,
    stride_r,
    stride_k,
    stride_low,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Compute low_tr = factor sum_k D_tk input_tk a_rk for a block of tokens; D is 0 or 1."""
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    r = tl.arange(0, BLOCK_R)
    m_t, m_r = t < tokens, r < rank
    o_t = t.to(tl.int64)[:, None]
    total = tl.zeros((BLOCK_T, BLOCK_R), tl.float32)
    if p_seed is not None:
        key = row_keys(tl.load(p_seed), t)
    for o_k in range(0, in_features, BLOCK_K):
        k = o_k + tl.arange(0, BLOCK_K)
        m_k = k < in_features
        x = tl.load(p_input + o_t * in_features + k[None, :], mask=m_t[:, None] & m_k[None, :], other=0.0)
        a = tl.load(
            p_a + r[None, :] * stride_r + k[:, None] * stride_k, mask=m_r[None, :] & m_k[:, None], other=0.0
        )
        if p_seed is not None:
            x = tl.where(keep_mask(key, k, threshold), x, 0.0)
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
    num_partials,
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
    """Compute out_tk = D_tk factor sum_r low_tr a_rk + bias_k for a block of tokens and SPAN columns.

    With ``p_sum``, low is the sum of ``num_partials`` matrices, and is stored there; out is then optional.
    """
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    r = tl.arange(0, BLOCK_R)
    m_t, m_r = t < tokens, r < rank
    o_t = t.to(tl.int64)[:, None]
    m_low = m_t[:, None] & m_r[None, :]
    if p_sum is not None:
        total = tl.zeros((BLOCK_T, BLOCK_R), tl.float32)
        for _ in range(0, num_partials):
            total += tl.load(p_low + o_t * stride_low + r[None, :], mask=m_low, other=0.0)
            p_low += tokens.to(tl.int64) * stride_low
        low = total.to(p_sum.dtype.element_ty)
        if tl.program_id(1) == 0:
            tl.store(p_sum + o_t * stride_sum + r[None, :], low, mask=m_low)
    else:
        low = tl.load(p_low + o_t * stride_low + r[None, :], mask=m_low, other=0.0)
    if p_seed is not None:
        key = row_keys(tl.load(p_seed), t)
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
                value = tl.where(keep_mask(key, k, threshold), value, 0.0)
            tl.store(p_out + o_t * columns + k[None, :], value, mask=m_t[:, None] & m_k[None, :])


@triton.jit(do_not_specialize=_VARYING)
def outer_product(
    p_input,
    p_low,
    p_sums,
    p_b,
    p_products,
    p_seed,
    tokens,
    tokens_per_partial,
    threshold: tl.uint32,
    factor: tl.float32,
    in_features,
    rank,
    stride_low,
    stride_k,
    stride_r,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Compute sums_pkr = sum_t D_tk input_tk low_tr over the tokens of partial sum p, for a strip of columns.

    With ``p_b`` also products_str = factor sum_k input_tk b_kr over the columns of the strip.
    """
    i_strip, i_partial = tl.program_id(0), tl.program_id(1)
    k = i_strip * BLOCK_K + tl.arange(0, BLOCK_K)
    r = tl.arange(0, BLOCK_R)
    m_k, m_r = k < in_features, r < rank
    if p_b is not None:
        b = tl.load(
            p_b + k[:, None] * stride_k + r[None, :] * stride_r, mask=m_k[:, None] & m_r[None, :], other=0.0
        )
    if p_seed is not None:
        seed = tl.load(p_seed)
    total = tl.zeros((BLOCK_K, BLOCK_R), tl.float32)
    first = i_partial * tokens_per_partial
    for o_t in range(first, min(first + tokens_per_partial, tokens), BLOCK_T):
        t = o_t + tl.arange(0, BLOCK_T)
        m_t = t < tokens
        wide = t.to(tl.int64)[:, None]
        m_low = m_t[:, None] & m_r[None, :]
        x = tl.load(p_input + wide * in_features + k[None, :], mask=m_t[:, None] & m_k[None, :], other=0.0)
        low = tl.load(p_low + wide * stride_low + r[None, :], mask=m_low, other=0.0)
        if p_b is not None:
            product = factor * tl.dot(x, b, input_precision="ieee")
            o_strip = i_strip.to(tl.int64) * tokens
            tl.store(p_products + (o_strip + wide) * rank + r[None, :], product, mask=m_low)
        if p_seed is not None:
            x = tl.where(keep_mask(row_keys(seed, t), k, threshold), x, 0.0)
        total = tl.dot(tl.trans(x), low, total, input_precision="ieee")
    o_sums = (i_partial.to(tl.int64) * in_features + k[:, None]) * rank + r[None, :]
    tl.store(p_sums + o_sums, total, mask=m_k[:, None] & m_r[None, :])


@triton.jit
def sum_partials(p_sums, num_partials, in_features, stride, rank, e, BLOCK_P: tl.constexpr):
    """Sum elements (e // rank, e % rank) of partial sums whose rows are ``stride`` apart."""
    m_e = e < in_features * rank
    o_e = e // rank * stride + e % rank
    total = tl.zeros(e.shape, tl.float32)
    for o_p in range(0, num_partials, BLOCK_P):
        p = o_p + tl.arange(0, BLOCK_P)
        part = tl.load(
            p_sums + p.to(tl.int64)[:, None] * in_features * stride + o_e[None, :],
            mask=(p < num_partials)[:, None] & m_e[None, :],
            other=0.0,
        )
        total += tl.sum(part, 0)
    return total


@triton.jit(do_not_specialize=["num_partials_a", "num_partials_b", "factor"])
def reduce_partials(
    p_sums_a,
    p_sums_b,
    p_grad_a,
    p_grad_b,
    num_partials_a,
    num_partials_b,
    factor: tl.float32,
    in_features,
    out_features,
    rank,
    stride_a,
    BLOCK_P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute grad_a_rk = sum_p sums_a_pkr and grad_b_nr = factor sum_p sums_b_pnr, in separate programs."""
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if tl.program_id(1) == 0:
        total = sum_partials(p_sums_a, num_partials_a, in_features, stride_a, rank, e, BLOCK_P)
        tl.store(p_grad_a + e % rank * in_features + e // rank, total, mask=e < in_features * rank)
    else:
        total = sum_partials(p_sums_b, num_partials_b, out_features, rank, rank, e, BLOCK_P)
        tl.store(p_grad_b + e, factor * total, mask=e < out_features * rank)
