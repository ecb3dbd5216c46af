"""The kernels over few classes that read the input twice; ``triton_small_vocab.py`` says when they run.

Products take their operands in the input's dtype and accumulate in float32, as does all else.

Prefixes: p_ pointer, i_ index, o_ offset, m_ mask.
Workspace of a call, float32: the programs' gradients of the weight, of the bias, then their totals.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fangyan_kernels.linear_cross_entropy.triton_shared import VARYING, divisor, store_totals
from fangyan_kernels.linear_cross_entropy.triton_small_vocab_tiles import load_classes, tile_loss


@triton.jit(do_not_specialize=VARYING)
def small_vocab_logits(
    p_input,
    p_weight,
    p_bias,
    p_target,
    p_class_weight,
    p_token_weight,
    p_partial_sums,
    p_loss,
    p_prediction,
    p_grad_input,
    p_grad_logits,
    p_workspace,
    tokens,
    num_partials,
    ignore_index,
    smoothing,
    z_loss,
    logit_scale,
    softcap,
    splits,
    hidden,
    classes,
    HAS_BIAS: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    HAS_TOKEN_WEIGHT: tl.constexpr,
    HAS_DIVISOR: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    HAS_LOGIT_SCALE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    PREDICT: tl.constexpr,
    LOSS_T: tl.constexpr,
    GRAD_INPUT: tl.constexpr,
    GRAD_WEIGHT: tl.constexpr,
    GRAD_BIAS: tl.constexpr,
    NUM_PARTIALS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute loss and gradients of logits and input of every P-th tile of tokens, H a block at a time."""
    i_program = tl.program_id(0)
    lane_t, lane_h, c = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_C)
    m_c = c < classes
    dtype = p_input.dtype.element_ty
    inverse = 1.0 / divisor(p_partial_sums, num_partials, HAS_DIVISOR, NUM_PARTIALS)

    grad_bias = tl.zeros((BLOCK_C,), tl.float32)
    loss_sum = tl.zeros((BLOCK_T,), tl.float32)
    valid = tl.zeros((BLOCK_T,), tl.int32)
    correct = tl.zeros((BLOCK_T,), tl.int32)
    invalid = tl.zeros((BLOCK_T,), tl.int32)
    for i_tile in range(i_program, tl.cdiv(tokens, BLOCK_T), tl.num_programs(0)):
        token = i_tile * BLOCK_T + lane_t
        m_token = token < tokens
        target = tl.load(p_target + token, mask=m_token, other=ignore_index)
        m_t = target != ignore_index
        o_rows = token.to(tl.int64)[:, None] * hidden
        z = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
        # A tile of ignored tokens reads nothing.
        for o_h in range(0, hidden * tl.max(m_t.to(tl.int32), 0), BLOCK_H):
            i_h = o_h + lane_h
            m_h = i_h < hidden
            x = tl.load(p_input + o_rows + i_h[None, :], mask=m_t[:, None] & m_h[None, :], other=0.0)
            p_w = p_weight + c[None, :] * hidden + i_h[:, None]
            w = tl.load(p_w, mask=m_c[None, :] & m_h[:, None], other=0.0)
            z = tl.dot(x, w, z, input_precision="ieee")
        # From the cache, per tile: kept through the products they would spill.
        bias, class_weight = load_classes(
            p_bias, p_class_weight, classes, HAS_BIAS, HAS_CLASS_WEIGHT, BLOCK_C
        )
        loss, is_correct, g = tile_loss(
            z + bias[None, :],
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
            HAS_CLASS_WEIGHT,
            HAS_TOKEN_WEIGHT,
            HAS_SMOOTHING,
            HAS_LOGIT_SCALE,
            HAS_SOFTCAP,
            PREDICT,
            LOSS_T,
            BLOCK_T,
            BLOCK_C,
        )
        loss_sum += loss
        valid += m_t.to(tl.int32)
        correct += is_correct.to(tl.int32)
        invalid += (m_t & ((target < 0) | (target >= classes))).to(tl.int32)
        if GRAD_BIAS:
            grad_bias += tl.sum(g, 0)
        g = g.to(dtype)
        if GRAD_WEIGHT:
            o_g = token.to(tl.int64)[:, None] * BLOCK_C + c[None, :]
            tl.store(p_grad_logits + o_g, g, mask=m_token[:, None])
        if GRAD_INPUT:
            for o_h in range(0, hidden, BLOCK_H):
                i_h = o_h + lane_h[None, :]
                m_h = i_h < hidden
                w = tl.load(p_weight + c[:, None] * hidden + i_h, mask=m_c[:, None] & m_h, other=0.0)
                grad = tl.dot(g, w, input_precision="ieee").to(dtype)
                tl.store(p_grad_input + o_rows + i_h, grad, mask=m_token[:, None] & m_h)

    p_own = p_workspace
    if GRAD_WEIGHT:
        p_own += splits * classes * hidden
    if GRAD_BIAS:
        tl.store(p_own + i_program * classes + c, grad_bias, mask=m_c)
        p_own += tl.num_programs(0) * classes
    store_totals(p_own, loss_sum, valid, correct, invalid)


@triton.jit(do_not_specialize=VARYING)
def small_vocab_weight(
    p_input,
    p_target,
    p_grad_logits,
    p_workspace,
    tokens,
    ignore_index,
    hidden,
    classes,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Sum a block of the weight's gradient over every S-th tile of tokens; ignored tokens are not read."""
    lane_t, c = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_C)
    i_h = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)[None, :]
    i_split, splits = tl.program_id(1), tl.num_programs(1)
    total = tl.zeros((BLOCK_C, BLOCK_H), tl.float32)
    for i_tile in tl.range(i_split, tl.cdiv(tokens, BLOCK_T), splits, num_stages=STAGES):
        token = i_tile * BLOCK_T + lane_t
        target = tl.load(p_target + token, mask=token < tokens, other=ignore_index)
        m_t = target != ignore_index
        p_x = p_input + token.to(tl.int64)[:, None] * hidden + i_h
        x = tl.load(p_x, mask=m_t[:, None] & (i_h < hidden), other=0.0)
        p_g = p_grad_logits + token.to(tl.int64)[:, None] * BLOCK_C + c[None, :]
        g = tl.load(p_g, mask=(token < tokens)[:, None], other=0.0)
        total = tl.dot(tl.trans(g), x, total, input_precision="ieee")
    p_own = p_workspace + (i_split * classes + c[:, None]) * hidden + i_h
    tl.store(p_own, total, mask=(c < classes)[:, None] & (i_h < hidden))
