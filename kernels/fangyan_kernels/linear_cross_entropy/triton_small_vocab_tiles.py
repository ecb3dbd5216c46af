"""The loss of a tile of logits over few classes, and the sum over all programs.

Products take their operands in the input's dtype and accumulate in float32, as does all else.

Prefixes: p_ pointer, i_ index, o_ offset, m_ mask.
Workspace of a call, float32: the programs' gradients of the weight, of the bias, then their totals.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fangyan_kernels.linear_cross_entropy.triton_shared import divisor, tanh, token_loss

# Varies from batch to batch: specialized on being 1 or a multiple of 16, a kernel would be compiled again
# for a last batch.
VARYING = ["tokens", "num_partials", "programs", "splits", "ignore_index", "max_valid"]


@triton.jit
def tile_loss(
    z,
    token,
    target,
    class_weight,
    inverse,
    p_token_weight,
    p_loss,
    p_prediction,
    tokens,
    classes,
    ignore_index,
    smoothing,
    z_loss,
    logit_scale,
    softcap,
    HAS_CLASS_WEIGHT: tl.constexpr,
    HAS_TOKEN_WEIGHT: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    HAS_LOGIT_SCALE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    PREDICT: tl.constexpr,
    LOSS_T: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute losses, correct predictions and the logits' gradient of a tile of logits; see ``reference.py``.

    Losses and predictions per token are stored where they are wanted. A target that is no class reads
    nothing; ``reduce_partials`` reports it.
    """
    c = tl.arange(0, BLOCK_C)
    m_c = c < classes
    m_t = target != ignore_index
    i_target = target.to(tl.int32)
    if HAS_LOGIT_SCALE:
        z *= logit_scale
        inverse *= logit_scale
    if HAS_SOFTCAP:
        tanh_z = tanh(z / softcap)
        z = softcap * tanh_z
    m_target = c[None, :] == i_target[:, None]
    z_target = tl.sum(tl.where(m_target, z, 0.0), 1)
    target_weight = tl.full((BLOCK_T,), 1.0, tl.float32) - smoothing
    if HAS_CLASS_WEIGHT:
        target_weight *= tl.sum(tl.where(m_target, class_weight[None, :], 0.0), 1)
    smoothing_per_class, class_weight_sum = smoothing / classes, tl.sum(class_weight, 0)
    margin_sum = tl.zeros((BLOCK_T,), tl.float32)
    if HAS_SMOOTHING:
        margin_sum = tl.sum(class_weight[None, :] * (z_target[:, None] - z), 1)
    z = tl.where(m_c[None, :], z, -float("inf"))
    max_z = tl.max(z, 1)
    best = tl.min(tl.where(z == max_z[:, None], c[None, :], BLOCK_C), 1)
    e = tl.exp(z - max_z[:, None])
    sum_exp = tl.sum(e, 1)
    log_sum = tl.log(sum_exp)
    lse = max_z + log_sum
    token_weight = m_t.to(tl.float32)
    if HAS_TOKEN_WEIGHT:
        token_weight = tl.load(p_token_weight + token, mask=m_t, other=0.0)
    lse_minus_target = log_sum + (max_z - z_target)
    loss = token_weight * token_loss(
        lse, lse_minus_target, margin_sum, target_weight, smoothing_per_class, class_weight_sum, z_loss
    )
    loss = tl.where(m_t, loss, 0.0)
    if LOSS_T:
        tl.store(p_loss + token, loss, mask=token < tokens)
    if PREDICT:
        tl.store(p_prediction + token, tl.where(m_t, best.to(tl.int64), target), mask=token < tokens)

    scale = token_weight * inverse
    factor = scale * (target_weight + smoothing_per_class * class_weight_sum + 2.0 * z_loss * lse) / sum_exp
    g = factor[:, None] * e - tl.where(m_target, (scale * target_weight)[:, None], 0.0)
    if HAS_SMOOTHING:
        g -= (scale * smoothing_per_class)[:, None] * class_weight[None, :]
    if HAS_SOFTCAP:
        g *= 1.0 - tanh_z * tanh_z
    return loss, m_t & (best == i_target), tl.where(m_t[:, None], g, 0.0)


@triton.jit
def load_classes(
    p_bias,
    p_class_weight,
    classes,
    HAS_BIAS: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Load the bias and the weight of every class."""
    c = tl.arange(0, BLOCK_C)
    bias, class_weight = tl.zeros((BLOCK_C,), tl.float32), (c < classes).to(tl.float32)
    if HAS_BIAS:
        bias = tl.load(p_bias + c, mask=c < classes, other=0.0).to(tl.float32)
    if HAS_CLASS_WEIGHT:
        class_weight = tl.load(p_class_weight + c, mask=c < classes, other=0.0)
    return bias, class_weight


@triton.jit
def store_totals(p_totals, loss, valid, correct, invalid):
    """Store a program's row of totals: counts stay below 2^24, which float32 holds exactly."""
    p_row = p_totals + 4 * tl.program_id(0)
    tl.store(p_row, tl.sum(loss, 0))
    tl.store(p_row + 1, tl.sum(valid, 0).to(tl.float32))
    tl.store(p_row + 2, tl.sum(correct, 0).to(tl.float32))
    tl.store(p_row + 3, tl.sum(invalid, 0).to(tl.float32))


@triton.jit(do_not_specialize=VARYING, debug=True)
def reduce_partials(
    p_workspace,
    p_partial_sums,
    p_grad_weight,
    p_grad_bias,
    p_loss,
    p_num_valid,
    p_num_correct,
    splits,
    programs,
    num_partials,
    max_valid,
    hidden,
    classes,
    width,
    REDUCE: tl.constexpr,
    HAS_DIVISOR: tl.constexpr,
    GRAD_WEIGHT: tl.constexpr,
    GRAD_BIAS: tl.constexpr,
    NUM_PARTIALS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum over the programs in a fixed order: each program here a few columns, the last one the totals.

    ``width`` is that of a row of the workspace's weight gradients. Reads 4 S C H bytes.
    """
    lane_p, lane = tl.arange(0, BLOCK_P)[:, None], tl.arange(0, BLOCK)
    if tl.program_id(0) < tl.num_programs(0) - 1:
        if GRAD_WEIGHT:
            i = tl.program_id(0) * BLOCK + lane
            total = tl.zeros((BLOCK_P, BLOCK), tl.float32)
            for o in range(0, splits, BLOCK_P):
                m_own = (o + lane_p < splits) & (i < classes * width)[None, :]
                p_own = p_workspace + (o + lane_p) * classes * width + i[None, :]
                total += tl.load(p_own, mask=m_own & (i % width < hidden)[None, :], other=0.0)
            value = tl.sum(total, 0).to(p_grad_weight.dtype.element_ty)
            m_weight = (i < classes * width) & (i % width < hidden)
            tl.store(p_grad_weight + i // width * hidden + i % width, value, mask=m_weight)
    else:
        p_own = p_workspace
        if GRAD_WEIGHT:
            p_own += splits * classes * width
        if GRAD_BIAS:
            total = tl.zeros((BLOCK_P, BLOCK), tl.float32)
            for o in range(0, programs, BLOCK_P):
                m_own = (o + lane_p < programs) & (lane < classes)[None, :]
                total += tl.load(p_own + (o + lane_p) * classes + lane[None, :], mask=m_own, other=0.0)
            value = tl.sum(total, 0).to(p_grad_bias.dtype.element_ty)
            tl.store(p_grad_bias + lane, value, mask=lane < classes)
            p_own += programs * classes
        lane_4 = tl.arange(0, 4)[None, :]
        losses = tl.zeros((BLOCK_P, 4), tl.float32)
        counts = tl.zeros((BLOCK_P, 4), tl.int32)
        for o in range(0, programs, BLOCK_P):
            own = tl.load(p_own + (o + lane_p) * 4 + lane_4, mask=o + lane_p < programs, other=0.0)
            losses += tl.where(lane_4 == 0, own, 0.0)
            counts += tl.where(lane_4 == 0, 0.0, own).to(tl.int32)
        num_valid = tl.sum(tl.where(lane_4 == 1, counts, 0))
        invalid = tl.sum(tl.where(lane_4 == 3, counts, 0))
        tl.device_assert(invalid == 0, "linear_cross_entropy: a target is no class")
        tl.device_assert(num_valid <= max_valid, "linear_cross_entropy: more valid targets than max_valid")
        if REDUCE:
            tl.store(
                p_loss, tl.sum(losses) / divisor(p_partial_sums, num_partials, HAS_DIVISOR, NUM_PARTIALS)
            )
        tl.store(p_num_valid, num_valid.to(tl.int64))
        tl.store(p_num_correct, tl.sum(tl.where(lane_4 == 2, counts, 0)).to(tl.int64))
