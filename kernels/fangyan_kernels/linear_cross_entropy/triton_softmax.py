"""Rows of logits become rows of their gradient, in place: the kernels between a vocabulary's products.

    softmax_tile    several rows per program, up to 4,096 classes: a row is read once, into registers
    softmax_row     one row per program: read twice, the second time backwards, from what the cache still has

A row lies ``stride`` elements from the next, a multiple of 64, so that every access is of 16 bytes whatever
the number of classes: what lies between the last class and the next row is anything before, and 0 after.
Everything in between is float32. The formula is in ``reference.py``; the sum is that of online softmax
(Milakov & Gimelshein 2018, arXiv 1805.02867).

Prefixes inside kernels: p_ pointer, i_ index, o_ offset, m_ mask.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from fangyan_kernels.linear_cross_entropy.triton_shared import divisor, tanh, token_loss

LOG2E = tl.constexpr(1.4426950408889634)

# What differs between batches, and what no address depends on: one variant serves all its values.
VARYING = ["start", "rows", "classes", "num_partials", "ignore_index"]


class Tile(NamedTuple):
    """What a program of ``softmax_tile`` takes: rows, columns, warps."""

    rows: int
    block: int
    warps: int


MAX_TILE_CLASSES = 4096


def choose_tile(classes: int) -> Tile:
    """The tile for up to :data:`MAX_TILE_CLASSES` classes: 16 logits per thread, or 32.

    A warp that has its rows for itself, up to 1,024 classes, adds them up without the others. A row costs
    about 150 instructions besides its logits, in each of its threads. So there are 2,048 logits per 4 warps
    of few classes, 38 instructions per logit; from 257 classes one row per warp, 26 to 34 instructions; and
    beyond 1,024 classes one row, 35. Hopper's arithmetic takes as long as its memory at 40. Over 24 KB per SM
    are under way in each. No program of one warp has two rows: Triton 3.6 gets their numbers wrong.
    """
    block = max(16, triton.next_power_of_2(classes))
    if block <= 256:
        return Tile(2048 // block, block, 4)
    return Tile(1, block, 1 if block <= 1024 else block // 512)


@triton.jit
def to_logits(
    z,
    bias,
    logit_scale,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_LOGIT_SCALE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """Turn products into logits: float32, with the bias, scaled, capped."""
    z = z.to(tl.float32)
    if HAS_BIAS:
        z += bias.to(tl.float32)
    if HAS_LOGIT_SCALE:
        z *= logit_scale
    if HAS_SOFTCAP:
        z = softcap * tanh(z / softcap)
    return z


@triton.jit
def load_per_class(p, c, m_c, MASKED: tl.constexpr, PRESENT: tl.constexpr):
    """Load biases or weights of classes; 0 beyond the last, and where there are none."""
    if PRESENT:
        if MASKED:
            return tl.load(p + c, mask=m_c, other=0.0)
        else:
            return tl.load(p + c)
    else:
        return 0.0


@triton.jit
def loss_and_factors(
    token,
    target,
    m_valid,
    z_target,
    max_z,
    sum_exp,
    margin_sum,
    class_weight_sum,
    p_class_weight,
    p_token_weight,
    p_partial_sums,
    num_partials,
    classes,
    smoothing,
    z_loss,
    logit_scale,
    HAS_CLASS_WEIGHT: tl.constexpr,
    HAS_TOKEN_WEIGHT: tl.constexpr,
    HAS_DIVISOR: tl.constexpr,
    HAS_LOGIT_SCALE: tl.constexpr,
    NUM_PARTIALS: tl.constexpr,
):
    """Compute the loss of one or several tokens, and the three factors of its gradient.

    They multiply exp(z - max_z), the classes' smoothing weights, and the target's indicator.
    """
    log_sum = tl.log(sum_exp)
    lse = max_z + log_sum
    # The maximum is subtracted first: a small loss is no difference of large numbers.
    lse_minus_target = log_sum + (max_z - z_target)
    target_weight = 1.0 - smoothing
    if HAS_CLASS_WEIGHT:
        target_weight = target_weight * tl.load(p_class_weight + target, mask=m_valid, other=0.0)
    smoothing_per_class = smoothing / classes
    loss = token_loss(
        lse, lse_minus_target, margin_sum, target_weight, smoothing_per_class, class_weight_sum, z_loss
    )
    scale = 1.0 / divisor(p_partial_sums, num_partials, HAS_DIVISOR, NUM_PARTIALS)
    if HAS_LOGIT_SCALE:
        scale *= logit_scale
    if HAS_TOKEN_WEIGHT:
        token_weight = tl.load(p_token_weight + token, mask=m_valid, other=0.0)
        loss = token_weight * loss
        scale = token_weight * scale
    factor = scale * (target_weight + smoothing_per_class * class_weight_sum + 2.0 * z_loss * lse) / sum_exp
    return loss, factor, scale * smoothing_per_class, scale * target_weight


@triton.jit
def gradient(
    exp_z,
    z,
    weight,
    factor,
    smoothing_factor,
    target_factor,
    softcap,
    HAS_SMOOTHING: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """Compute the gradient of the products, from logits z with exp_z = exp(z - max_z).

    The factors hold the logits' scale already.
    """
    g = factor * exp_z - target_factor
    if HAS_SMOOTHING:
        g -= smoothing_factor * weight
    if HAS_SOFTCAP:
        tanh_z = z / softcap  # z is capped already
        g *= 1.0 - tanh_z * tanh_z
    return g


@triton.jit
def any_not_finite(x):
    """Return whether any element of a tile is inf or NaN."""
    return tl.max(tl.max((tl.abs(x.to(tl.float32)) < float("inf")).to(tl.int32) ^ 1, 1), 0) != 0


@triton.jit(do_not_specialize=VARYING)
def softmax_tile(
    p_logits,
    p_input,
    p_token,
    p_bias,
    p_target,
    p_class_weight,
    p_token_weight,
    p_partial_sums,
    p_loss,
    p_correct,
    p_prediction,
    p_repair,
    start,
    rows,
    num_partials,
    ignore_index,
    smoothing,
    z_loss,
    logit_scale,
    softcap,
    classes,
    stride,
    hidden,
    HAS_BIAS: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    HAS_TOKEN_WEIGHT: tl.constexpr,
    HAS_DIVISOR: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    HAS_LOGIT_SCALE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    PREDICT: tl.constexpr,
    PACKED: tl.constexpr,
    GRADIENTS: tl.constexpr,
    CHECK_INPUT: tl.constexpr,
    NUM_PARTIALS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A tile of ROWS rows, each in registers as a whole: read once, written once.

    With CHECK_INPUT, a row that no label needs also reads its own row of the input, and sets ``p_repair``
    to 1 where that is not finite.
    """
    i_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m_row = i_row < rows
    if PACKED:  # a negative token fills a row that no label needs
        token = tl.load(p_token + start + i_row, mask=m_row, other=-1)
    else:
        token = (start + i_row).to(tl.int64)
    m_token = m_row & (token >= 0)
    target = tl.load(p_target + token, mask=m_token, other=ignore_index)
    m_valid = target != ignore_index
    p_row = p_logits + i_row.to(tl.int64) * stride
    z_target = tl.load(p_row + target, mask=m_valid, other=0.0)
    target_bias = load_per_class(p_bias, target, m_valid, True, HAS_BIAS)
    z_target = to_logits(z_target, target_bias, logit_scale, softcap, HAS_BIAS, HAS_LOGIT_SCALE, HAS_SOFTCAP)
    i_c = tl.arange(0, BLOCK)
    c = i_c[None, :]
    m_c = c < classes
    bias = load_per_class(p_bias, i_c, i_c < classes, True, HAS_BIAS)
    if HAS_BIAS:
        bias = bias[None, :]
    weight = m_c.to(tl.float32)
    if HAS_SMOOTHING and HAS_CLASS_WEIGHT:
        weight = load_per_class(p_class_weight, i_c, i_c < classes, True, True)[None, :]
    p_z = p_row[:, None] + c
    m_z = c < stride
    z = tl.load(p_z, mask=m_valid[:, None] & m_z, other=0.0)
    z = tl.where(m_c, z, 0.0)  # past the classes is anything
    z = to_logits(z, bias, logit_scale, softcap, HAS_BIAS, HAS_LOGIT_SCALE, HAS_SOFTCAP)
    margin_sum = 0.0
    class_weight_sum = 0.0
    if HAS_SMOOTHING:
        class_weight_sum = tl.sum(tl.sum(weight, 1), 0)
        margin_sum = tl.sum(weight * (z_target[:, None] - z), 1)
    seen = tl.where(m_c, z, -float("inf"))
    max_z = tl.max(seen, 1)
    exp_z = tl.exp2((seen - max_z[:, None]) * LOG2E)
    loss, factor, smoothing_factor, target_factor = loss_and_factors(
        token,
        target,
        m_valid,
        z_target,
        max_z,
        tl.sum(exp_z, 1),
        margin_sum,
        class_weight_sum,
        p_class_weight,
        p_token_weight,
        p_partial_sums,
        num_partials,
        classes,
        smoothing,
        z_loss,
        logit_scale,
        HAS_CLASS_WEIGHT,
        HAS_TOKEN_WEIGHT,
        HAS_DIVISOR,
        HAS_LOGIT_SCALE,
        NUM_PARTIALS,
    )
    best = tl.min(tl.where(seen == max_z[:, None], c, classes), 1)
    tl.store(p_loss + token, tl.where(m_valid, loss, 0.0), mask=m_token)
    tl.store(p_correct + token, (m_valid & (best == target)).to(tl.int8), mask=m_token)
    if PREDICT:
        tl.store(p_prediction + token, tl.where(m_valid, best.to(tl.int64), ignore_index), mask=m_token)
    if GRADIENTS:
        factor = tl.where(m_valid, factor, 0.0)
        smoothing_factor = tl.where(m_valid, smoothing_factor, 0.0)
        g = gradient(
            exp_z,
            z,
            weight,
            factor[:, None],
            smoothing_factor[:, None],
            0.0,
            softcap,
            HAS_SMOOTHING,
            HAS_SOFTCAP,
        )
        tl.debug_barrier()  # every thread has its targets' logits
        tl.store(p_z, g.to(p_logits.dtype.element_ty), mask=m_row[:, None] & m_z)
        exp_z = tl.exp2((z_target - max_z) * LOG2E)
        weight_at_target = 1.0
        if HAS_SMOOTHING and HAS_CLASS_WEIGHT:
            weight_at_target = load_per_class(p_class_weight, target, m_valid, True, True)
        g = gradient(
            exp_z,
            z_target,
            weight_at_target,
            factor,
            smoothing_factor,
            target_factor,
            softcap,
            HAS_SMOOTHING,
            HAS_SOFTCAP,
        )
        tl.debug_barrier()  # a target's element was written with its row
        tl.store(p_row + target, g.to(p_logits.dtype.element_ty), mask=m_valid)
    if CHECK_INPUT:
        m_check = m_row & (target == ignore_index)
        if tl.max(m_check.to(tl.int32), 0) != 0:
            p_x = p_input + i_row.to(tl.int64)[:, None] * hidden + c
            for o in range(0, hidden, BLOCK):
                x = tl.load(p_x + o, mask=m_check[:, None] & (o + c < hidden), other=0.0)
                if any_not_finite(x):
                    tl.store(p_repair, 1)
