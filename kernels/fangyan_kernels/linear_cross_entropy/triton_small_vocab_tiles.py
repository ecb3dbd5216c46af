"""The loss of a tile of logits over few classes.

Products take their operands in the input's dtype and accumulate in float32, as does all else.

Prefixes: p_ pointer, i_ index, o_ offset, m_ mask.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fangyan_kernels.linear_cross_entropy.triton_shared import tanh, token_loss


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
