"""Softmax of a row per program, for vocabularies: a row of logits becomes its gradient, in place.

Read twice, the second time backwards, from what the cache still has, and written once: 4 bytes per logit in
bfloat16 where it has all of it, else up to 6. See ``triton_softmax.py`` for what rows look like.

Prefixes inside kernels: p_ pointer, i_ index, o_ offset, m_ mask.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fangyan_kernels.linear_cross_entropy.triton_shared import launch_options
from fangyan_kernels.linear_cross_entropy.triton_softmax import (
    LOG2E,
    VARYING,
    any_not_finite,
    gradient,
    load_per_class,
    loss_and_factors,
    to_logits,
)


def row_options(element_size: int, softcap: bool) -> dict[str, int]:
    """Constants and launch options for logits of so many bytes, with a cap on them or none.

    In 16 bits 8 warps take 4,096 columns at once: 17 instructions per logit, where Hopper's arithmetic takes
    as long as its memory at 40 (4 bytes per logit, 3.0 TB/s). Its 5 programs per SM have 40 KB under way,
    where 0.7 us of latency take 16. Their rows, 28 MB at 21,128 classes, are still in a cache of 50 MB when
    they are read again; at 128,256 classes they are 169 MB, of which walking back finds a part.

    In float32, 4 warps take as many bytes at once. Within 128 registers no option spills; left to itself
    ptxas spills 8 to 52 bytes in float32 or with a cap, to fit 4 programs of 8 warps.
    """
    if element_size == 4:
        return {"GROUPS": 2, "WIDTH": 1024, **launch_options(4, registers=128)}
    warps = launch_options(8, registers=128) if softcap else {"num_warps": 8}
    return {"GROUPS": 2, "WIDTH": 2048, **warps}


@triton.jit(do_not_specialize=VARYING)
def softmax_row(
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
                if any_not_finite(x):
                    tl.store(p_repair, 1)
    else:
        target_bias = load_per_class(p_bias, target, True, False, HAS_BIAS)
        z_target = tl.load(p_row + target)
        z_target = to_logits(
            z_target, target_bias, logit_scale, softcap, HAS_BIAS, HAS_LOGIT_SCALE, HAS_SOFTCAP
        )
        top = tl.full((WIDTH,), -2e38, tl.float32)  # times log2(e) still finite
        total = tl.zeros((WIDTH,), tl.float32)
        origin = tl.zeros((WIDTH,), tl.int32)
        margin_sum = tl.zeros((WIDTH,), tl.float32)
        weights = tl.zeros((WIDTH,), tl.float32)
        for o in range(0, whole, BLOCK):
            c = o + block
            z = _read(
                p_row,
                p_bias,
                c,
                classes,
                stride,
                logit_scale,
                softcap,
                False,
                HAS_BIAS,
                HAS_LOGIT_SCALE,
                HAS_SOFTCAP,
            )
            if HAS_SMOOTHING:
                weight = _smoothing(p_class_weight, c, classes, False, HAS_CLASS_WEIGHT)
                margin_sum += tl.sum(weight * (z_target - z), 0)
                weights += tl.sum(weight, 0)
            top, total, origin = _join(z, o, top, total, origin)
        for o in range(whole, classes, WIDTH):
            i_c = o + lane
            end = _read(
                p_row,
                p_bias,
                i_c,
                classes,
                stride,
                logit_scale,
                softcap,
                True,
                HAS_BIAS,
                HAS_LOGIT_SCALE,
                HAS_SOFTCAP,
            )
            if HAS_SMOOTHING:
                weight_end = _smoothing(p_class_weight, i_c, classes, True, HAS_CLASS_WEIGHT)
                margin_sum += tl.sum(weight_end * (z_target - end), 0)
                weights += tl.sum(weight_end, 0)
            top, total, origin = _join(tl.where(i_c < classes, end, -float("inf")), o, top, total, origin)
        max_z = tl.max(top, 0)
        sum_exp = tl.sum(total * tl.exp2((top - max_z) * LOG2E), 0)
        loss, factor, smoothing_factor, target_factor = loss_and_factors(
            token,
            target,
            target >= 0,
            z_target,
            max_z,
            sum_exp,
            tl.sum(margin_sum, 0),
            tl.sum(weights, 0),
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
        tl.store(p_loss + token, loss)
        # The first of the largest is in the first block that has one: nobody else's is the target.
        first = tl.min(tl.where(top == max_z, origin, classes), 0)
        best = classes
        if PREDICT or ((target >= first) & (target < first + BLOCK)):
            largest = tl.full((1, WIDTH), -float("inf"), tl.float32)
            place = tl.full((1, WIDTH), 0, tl.int32) + classes
            for o in range(first, tl.minimum(first + BLOCK, classes), WIDTH):
                i_c = o // WIDTH * WIDTH + lane  # told so, the compiler loads 16 bytes at once
                end = _read(
                    p_row,
                    p_bias,
                    i_c,
                    classes,
                    stride,
                    logit_scale,
                    softcap,
                    True,
                    HAS_BIAS,
                    HAS_LOGIT_SCALE,
                    HAS_SOFTCAP,
                )
                end = tl.where(i_c < classes, end, -float("inf"))
                place = tl.where(end > largest, i_c, place)
                largest = tl.maximum(largest, end)
            largest_z = tl.max(tl.max(largest, 1), 0)
            best = tl.min(tl.min(tl.where(largest == largest_z, place, classes), 1), 0)
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
                    smoothing_factor,
                    logit_scale,
                    softcap,
                    True,
                    HAS_BIAS,
                    HAS_CLASS_WEIGHT,
                    HAS_SMOOTHING,
                    HAS_LOGIT_SCALE,
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
                    smoothing_factor,
                    logit_scale,
                    softcap,
                    False,
                    HAS_BIAS,
                    HAS_CLASS_WEIGHT,
                    HAS_SMOOTHING,
                    HAS_LOGIT_SCALE,
                    HAS_SOFTCAP,
                )
            weight_at_target = 1.0
            if HAS_SMOOTHING and HAS_CLASS_WEIGHT:
                weight_at_target = tl.load(p_class_weight + target)
            exp_z = tl.exp2((z_target - max_z) * LOG2E)
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
            tl.debug_barrier()  # the target's element was written with its block
            tl.store(p_row + target, g.to(p_logits.dtype.element_ty))


@triton.jit
def _read(
    p_row,
    p_bias,
    c,
    classes,
    stride,
    logit_scale,
    softcap,
    MASKED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_LOGIT_SCALE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """Load the logits of classes c; beyond the last class something finite."""
    if MASKED:
        z = tl.where(c < classes, tl.load(p_row + c, mask=c < stride, other=0.0), 0.0)
    else:
        z = tl.load(p_row + c)
    bias = load_per_class(p_bias, c, c < classes, MASKED, HAS_BIAS)
    return to_logits(z, bias, logit_scale, softcap, HAS_BIAS, HAS_LOGIT_SCALE, HAS_SOFTCAP)


@triton.jit
def _smoothing(p_class_weight, c, classes, MASKED: tl.constexpr, HAS_CLASS_WEIGHT: tl.constexpr):
    """Load the smoothing weights of classes c: 1 or their class weight, and 0 beyond the last."""
    if HAS_CLASS_WEIGHT:
        return load_per_class(p_class_weight, c, c < classes, MASKED, True)
    else:
        return (c < classes).to(tl.float32)


@triton.jit
def _join(z, o, top, total, origin):
    """Update the lanes' maxima, sums and first blocks with those maxima by the block at o."""
    higher = tl.maximum(top, tl.max(z, 0))
    origin = tl.where(higher > top, o, origin)
    total = total * tl.exp2((top - higher) * LOG2E) + tl.sum(tl.exp2((z - higher[None, :]) * LOG2E), 0)
    return higher, total, origin


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
    smoothing_factor,
    logit_scale,
    softcap,
    MASKED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    HAS_LOGIT_SCALE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """Overwrite the logits of classes c by their gradient, without the target's own term."""
    z = _read(
        p_row,
        p_bias,
        c,
        classes,
        stride,
        logit_scale,
        softcap,
        MASKED,
        HAS_BIAS,
        HAS_LOGIT_SCALE,
        HAS_SOFTCAP,
    )
    weight = 1.0
    if HAS_SMOOTHING:
        weight = _smoothing(p_class_weight, c, classes, MASKED, HAS_CLASS_WEIGHT)
    if MASKED:
        exp_z = tl.exp2((tl.where(c < classes, z, -float("inf")) - max_z) * LOG2E)
    else:
        exp_z = tl.exp2((z - max_z) * LOG2E)
    g = gradient(exp_z, z, weight, factor, smoothing_factor, 0.0, softcap, HAS_SMOOTHING, HAS_SOFTCAP)
    if MASKED:
        tl.store(p_row + c, g.to(p_row.dtype.element_ty), mask=c < stride)
    else:
        tl.store(p_row + c, g.to(p_row.dtype.element_ty))
