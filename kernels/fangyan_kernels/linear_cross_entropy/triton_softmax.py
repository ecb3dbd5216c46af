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
VARYING = ["start", "rows", "classes", "n_parts", "ignore_index"]


class Tile(NamedTuple):
    """What a program of ``softmax_tile`` takes: rows, columns, warps."""

    rows: int
    block: int
    warps: int


# softmax_row takes 4,096 columns at once by 4 warps, 32 logits per thread: 15 instructions per logit. 5 programs
# per Hopper SM have 40 KB under way, and 28 MB of rows at 21,128 classes in bfloat16: the cache, 50 MB, has
# them still when they are read again. At 128,256 classes it is 169 MB, so walking back finds about a third.
GROUPS = 4
WIDTH = 1024
WARPS = 4

MOST_TILE_CLASSES = 4096


def choose_tile(classes: int) -> Tile:
    """The tile for up to :data:`MOST_TILE_CLASSES` classes: several rows of few, of many one by few warps.

    A warp that has a row for itself adds it up without the others. Then 32 logits per thread share the 150
    or so instructions that a row costs besides, which makes 25 instructions per logit; Hopper's arithmetic
    is as long as its memory at 40. 8 to 28 programs per SM have over 32 KB under way, where 3.0 TB/s at
    0.7 us of latency take 16 KB.
    """
    block = max(16, triton.next_power_of_2(classes))
    if block <= 256:
        return Tile(2048 // block, block, 4)
    return Tile(max(1, 1024 // block), block, max(1, block // 1024))


@triton.jit
def _head(z, bias, softcap, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr):
    """Products as the loss sees them: float32, with the bias, capped."""
    z = z.to(tl.float32)
    if HAS_BIAS:
        z += bias.to(tl.float32)
    if HAS_SOFTCAP:
        z = softcap * tanh(z / softcap)
    return z


@triton.jit
def _of_class(p, c, m_c, MASKED: tl.constexpr, PRESENT: tl.constexpr):
    """Biases or weights of classes; 0 beyond the last, and where there are none."""
    if PRESENT:
        if MASKED:
            return tl.load(p + c, mask=m_c, other=0.0)
        else:
            return tl.load(p + c)
    else:
        return 0.0


@triton.jit
def _terms(
    token,
    target,
    m_label,
    z_target,
    max_z,
    sum_exp,
    distance,
    class_weight_sum,
    p_class_weight,
    p_token_weight,
    p_parts,
    n_parts,
    classes,
    smoothing,
    z_loss,
    HAS_CLASS_WEIGHT: tl.constexpr,
    HAS_TOKEN_WEIGHT: tl.constexpr,
    GIVEN: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Of a token, or of several: the loss, and its gradient's three factors.

    They are those of exp(z - max_z), of the classes' smoothing weights, and of the target.
    """
    log_sum = tl.log(sum_exp)
    lse = max_z + log_sum
    # The maximum is subtracted first: a small loss is no difference of large numbers.
    gap = log_sum + (max_z - z_target)
    hit = 1.0 - smoothing
    if HAS_CLASS_WEIGHT:
        hit = hit * tl.load(p_class_weight + target, mask=m_label, other=0.0)
    spread = smoothing / classes
    loss = token_loss(lse, gap, distance, hit, spread, class_weight_sum, z_loss)
    scale = 1.0 / divisor(p_parts, n_parts, GIVEN, PARTS)
    if HAS_TOKEN_WEIGHT:
        token_weight = tl.load(p_token_weight + token, mask=m_label, other=0.0)
        loss = token_weight * loss
        scale = token_weight * scale
    factor = scale * (hit + spread * class_weight_sum + 2.0 * z_loss * lse) / sum_exp
    return loss, factor, scale * spread, scale * hit


@triton.jit
def _gradient(
    exp_z, z, weight, factor, spread, hit, softcap, HAS_SMOOTHING: tl.constexpr, HAS_SOFTCAP: tl.constexpr
):
    """Of logits z with exp_z = exp(z - max_z): of the products before a cap."""
    g = factor * exp_z - hit
    if HAS_SMOOTHING:
        g -= spread * weight
    if HAS_SOFTCAP:
        share = z / softcap
        g *= 1.0 - share * share
    return g


@triton.jit
def _any_is_not_finite(x):
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
    p_parts,
    p_loss,
    p_correct,
    p_prediction,
    p_repair,
    start,
    rows,
    stride,
    classes,
    hidden,
    n_parts,
    ignore_index,
    smoothing,
    z_loss,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    HAS_TOKEN_WEIGHT: tl.constexpr,
    GIVEN: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    PREDICT: tl.constexpr,
    PACKED: tl.constexpr,
    GRADIENTS: tl.constexpr,
    CHECK_INPUT: tl.constexpr,
    PARTS: tl.constexpr,
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
    m_label = target != ignore_index
    p_row = p_logits + i_row.to(tl.int64) * stride
    z_target = tl.load(p_row + target, mask=m_label, other=0.0)
    target_bias = _of_class(p_bias, target, m_label, True, HAS_BIAS)
    z_target = _head(z_target, target_bias, softcap, HAS_BIAS, HAS_SOFTCAP)
    i_c = tl.arange(0, BLOCK)
    bias = _of_class(p_bias, i_c, i_c < classes, True, HAS_BIAS)
    weight = 1.0
    if HAS_SMOOTHING:
        weight = (i_c < classes).to(tl.float32)
    if HAS_SMOOTHING and HAS_CLASS_WEIGHT:
        weight = _of_class(p_class_weight, i_c, i_c < classes, True, True)
    if HAS_BIAS:
        bias = bias[None, :]
    c = i_c[None, :]
    m_c = c < classes
    p_z = p_row[:, None] + c
    m_z = c < stride
    z = tl.load(p_z, mask=m_label[:, None] & m_z, other=0.0)
    z = _head(tl.where(m_c, z, 0.0), bias, softcap, HAS_BIAS, HAS_SOFTCAP)  # past the classes is anything
    distance = 0.0
    class_weight_sum = 0.0
    if HAS_SMOOTHING:
        class_weight_sum = tl.sum(weight, 0)
        weight = weight[None, :]
        distance = tl.sum(weight * (z_target[:, None] - z), 1)
    seen = tl.where(m_c, z, -float("inf"))
    max_z = tl.max(seen, 1)
    exp_z = tl.exp2((seen - max_z[:, None]) * LOG2E)
    loss, factor, spread, hit = _terms(
        token,
        target,
        m_label,
        z_target,
        max_z,
        tl.sum(exp_z, 1),
        distance,
        class_weight_sum,
        p_class_weight,
        p_token_weight,
        p_parts,
        n_parts,
        classes,
        smoothing,
        z_loss,
        HAS_CLASS_WEIGHT,
        HAS_TOKEN_WEIGHT,
        GIVEN,
        PARTS,
    )
    best = tl.min(tl.where(seen == max_z[:, None], c, classes), 1)
    tl.store(p_loss + token, tl.where(m_label, loss, 0.0), mask=m_token)
    tl.store(p_correct + token, (m_label & (best == target)).to(tl.int8), mask=m_token)
    if PREDICT:
        tl.store(p_prediction + token, tl.where(m_label, best.to(tl.int64), ignore_index), mask=m_token)
    if GRADIENTS:
        factor = tl.where(m_label, factor, 0.0)
        spread = tl.where(m_label, spread, 0.0)
        g = _gradient(
            exp_z, z, weight, factor[:, None], spread[:, None], 0.0, softcap, HAS_SMOOTHING, HAS_SOFTCAP
        )
        tl.debug_barrier()  # every thread has its targets' logits
        tl.store(p_z, g.to(p_logits.dtype.element_ty), mask=m_row[:, None] & m_z)
        exp_target = tl.exp2((z_target - max_z) * LOG2E)
        weight = 1.0
        if HAS_SMOOTHING and HAS_CLASS_WEIGHT:
            weight = _of_class(p_class_weight, target, m_label, True, True)
        g = _gradient(
            exp_target, z_target, weight, factor, spread, hit, softcap, HAS_SMOOTHING, HAS_SOFTCAP
        )
        tl.debug_barrier()  # a target's element was written with its row
        tl.store(p_row + target, g.to(p_logits.dtype.element_ty), mask=m_label)
    if CHECK_INPUT:
        m_check = m_row & (target == ignore_index)
        if tl.max(m_check.to(tl.int32), 0) != 0:
            p_x = p_input + i_row.to(tl.int64)[:, None] * hidden + c
            for o in range(0, hidden, BLOCK):
                x = tl.load(p_x + o, mask=m_check[:, None] & (o + c < hidden), other=0.0)
                if _any_is_not_finite(x):
                    tl.store(p_repair, 1)


@triton.jit(do_not_specialize=VARYING)
def softmax_row(
    p_logits,
    p_input,
    p_token,
    p_bias,
    p_target,
    p_class_weight,
    p_token_weight,
    p_parts,
    p_loss,
    p_correct,
    p_prediction,
    p_repair,
    start,
    stride,
    classes,
    hidden,
    n_parts,
    ignore_index,
    smoothing,
    z_loss,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    HAS_TOKEN_WEIGHT: tl.constexpr,
    GIVEN: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    PREDICT: tl.constexpr,
    PACKED: tl.constexpr,
    GRADIENTS: tl.constexpr,
    CHECK_INPUT: tl.constexpr,
    PARTS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """A row, walked twice in blocks of GROUPS times WIDTH columns, what is left of it in blocks of WIDTH.

    Each of WIDTH lanes keeps a maximum, its sum and the block that it came from, renewed once per block:
    a lane's GROUPS columns are one thread's. Only blocks at the end of a row are masked.
    """
    BLOCK: tl.constexpr = GROUPS * WIDTH
    i_row = tl.program_id(0).to(tl.int64)
    p_row = p_logits + i_row * stride
    if PACKED:  # a negative token fills a row that no label needs
        token = tl.load(p_token + start + i_row)
    else:
        token = start + i_row
    target = tl.load(p_target + token, mask=token >= 0, other=ignore_index)
    lane = tl.arange(0, WIDTH)[None, :]
    block = tl.arange(0, GROUPS)[:, None] * WIDTH + lane
    whole = classes // BLOCK * BLOCK
    if target == ignore_index:
        if token >= 0:
            tl.store(p_loss + token, 0.0)
            tl.store(p_correct + token, 0)
            if PREDICT:
                tl.store(p_prediction + token, target)
        if GRADIENTS:
            zero = tl.zeros((GROUPS, WIDTH), p_logits.dtype.element_ty)
            for o in range(0, stride, BLOCK):
                tl.store(p_row + o + block, zero, mask=o + block < stride)
        if CHECK_INPUT:
            for o in range(0, hidden, WIDTH):
                x = tl.load(p_input + i_row * hidden + o + lane, mask=o + lane < hidden, other=0.0)
                if _any_is_not_finite(x):
                    tl.store(p_repair, 1)
    else:
        target_bias = _of_class(p_bias, target, True, False, HAS_BIAS)
        z_target = _head(tl.load(p_row + target), target_bias, softcap, HAS_BIAS, HAS_SOFTCAP)
        top = tl.full((WIDTH,), -3.4e38, tl.float32)
        total = tl.zeros((WIDTH,), tl.float32)
        origin = tl.zeros((WIDTH,), tl.int32)
        distance = tl.zeros((WIDTH,), tl.float32)
        weights = tl.zeros((WIDTH,), tl.float32)
        for o in range(0, whole, BLOCK):
            c = o + block
            z = _read(p_row, p_bias, c, classes, stride, softcap, False, HAS_BIAS, HAS_SOFTCAP)
            if HAS_SMOOTHING:
                weight = _smoothing(p_class_weight, c, classes, False, HAS_CLASS_WEIGHT)
                distance += tl.sum(weight * (z_target - z), 0)
                weights += tl.sum(weight, 0)
            top, total, origin = _join(z, o, top, total, origin)
        for o in range(whole, classes, WIDTH):
            i_c = o + lane
            end = _read(p_row, p_bias, i_c, classes, stride, softcap, True, HAS_BIAS, HAS_SOFTCAP)
            if HAS_SMOOTHING:
                weight_end = _smoothing(p_class_weight, i_c, classes, True, HAS_CLASS_WEIGHT)
                distance += tl.sum(weight_end * (z_target - end), 0)
                weights += tl.sum(weight_end, 0)
            top, total, origin = _join(tl.where(i_c < classes, end, -float("inf")), o, top, total, origin)
        max_z = tl.max(top, 0)
        sum_exp = tl.sum(total * tl.exp2((top - max_z) * LOG2E), 0)
        loss, factor, spread, hit = _terms(
            token,
            target,
            target >= 0,
            z_target,
            max_z,
            sum_exp,
            tl.sum(distance, 0),
            tl.sum(weights, 0),
            p_class_weight,
            p_token_weight,
            p_parts,
            n_parts,
            classes,
            smoothing,
            z_loss,
            HAS_CLASS_WEIGHT,
            HAS_TOKEN_WEIGHT,
            GIVEN,
            PARTS,
        )
        tl.store(p_loss + token, loss)
        # The first of the largest is in the first block that has one: nobody else's is the target.
        # Blocks start at multiples of WIDTH; told so, the compiler loads 16 bytes at once.
        first = tl.min(tl.where(top == max_z, origin, classes), 0) // WIDTH * WIDTH
        best = classes
        if PREDICT or ((target >= first) & (target < first + BLOCK)):
            best = _first_of_largest(
                p_row, p_bias, first + block, classes, stride, softcap, HAS_BIAS, HAS_SOFTCAP
            )
        tl.store(p_correct + token, (best == target).to(tl.int8))
        if PREDICT:
            tl.store(p_prediction + token, best.to(tl.int64))
        if GRADIENTS:
            for o in range(whole, stride, WIDTH):
                _write(
                    p_row,
                    p_bias,
                    p_class_weight,
                    o + lane,
                    classes,
                    stride,
                    max_z,
                    factor,
                    spread,
                    softcap,
                    True,
                    HAS_BIAS,
                    HAS_CLASS_WEIGHT,
                    HAS_SMOOTHING,
                    HAS_SOFTCAP,
                )
            for back in range(0, whole, BLOCK):
                _write(
                    p_row,
                    p_bias,
                    p_class_weight,
                    whole - BLOCK - back + block,
                    classes,
                    stride,
                    max_z,
                    factor,
                    spread,
                    softcap,
                    False,
                    HAS_BIAS,
                    HAS_CLASS_WEIGHT,
                    HAS_SMOOTHING,
                    HAS_SOFTCAP,
                )
            target_weight = 1.0
            if HAS_SMOOTHING and HAS_CLASS_WEIGHT:
                target_weight = tl.load(p_class_weight + target)
            exp_z = tl.exp2((z_target - max_z) * LOG2E)
            g = _gradient(
                exp_z, z_target, target_weight, factor, spread, hit, softcap, HAS_SMOOTHING, HAS_SOFTCAP
            )
            tl.debug_barrier()  # the target's element was written with its block
            tl.store(p_row + target, g.to(p_logits.dtype.element_ty))


@triton.jit
def _read(
    p_row,
    p_bias,
    c,
    classes,
    stride,
    softcap,
    MASKED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """Logits of classes c; beyond the last class something finite."""
    if MASKED:
        z = tl.where(c < classes, tl.load(p_row + c, mask=c < stride, other=0.0), 0.0)
    else:
        z = tl.load(p_row + c)
    return _head(z, _of_class(p_bias, c, c < classes, MASKED, HAS_BIAS), softcap, HAS_BIAS, HAS_SOFTCAP)


@triton.jit
def _smoothing(p_class_weight, c, classes, MASKED: tl.constexpr, HAS_CLASS_WEIGHT: tl.constexpr):
    """What classes c weigh in smoothing: 1 or their weight, and 0 beyond the last."""
    if HAS_CLASS_WEIGHT:
        return _of_class(p_class_weight, c, c < classes, MASKED, True)
    else:
        return (c < classes).to(tl.float32)


@triton.jit
def _join(z, o, top, total, origin):
    """Lanes' maxima, sums, and first blocks with those maxima, joined by the block at o, (groups, lanes)."""
    higher = tl.maximum(top, tl.max(z, 0))
    origin = tl.where(higher > top, o, origin)
    total = total * tl.exp2((top - higher) * LOG2E) + tl.sum(tl.exp2((z - higher[None, :]) * LOG2E), 0)
    return higher, total, origin


@triton.jit
def _first_of_largest(
    p_row, p_bias, c, classes, stride, softcap, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr
):
    z = _read(p_row, p_bias, c, classes, stride, softcap, True, HAS_BIAS, HAS_SOFTCAP)
    z = tl.where(c < classes, z, -float("inf"))
    return tl.min(tl.min(tl.where(z == tl.max(tl.max(z, 0), 0), c, classes), 0), 0)


@triton.jit
def _write(
    p_row,
    p_bias,
    p_class_weight,
    c,
    classes,
    stride,
    max_z,
    factor,
    spread,
    softcap,
    MASKED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """The gradient of classes c over their logits, but for what the target has besides."""
    z = _read(p_row, p_bias, c, classes, stride, softcap, MASKED, HAS_BIAS, HAS_SOFTCAP)
    weight = 1.0
    if HAS_SMOOTHING:
        weight = _smoothing(p_class_weight, c, classes, MASKED, HAS_CLASS_WEIGHT)
    if MASKED:
        exp_z = tl.exp2((tl.where(c < classes, z, -float("inf")) - max_z) * LOG2E)
    else:
        exp_z = tl.exp2((z - max_z) * LOG2E)
    g = _gradient(exp_z, z, weight, factor, spread, 0.0, softcap, HAS_SMOOTHING, HAS_SOFTCAP)
    if MASKED:
        tl.store(p_row + c, g.to(p_row.dtype.element_ty), mask=c < stride)
    else:
        tl.store(p_row + c, g.to(p_row.dtype.element_ty))
