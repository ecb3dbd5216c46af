"""The kernel over few classes that reads the input once; ``triton_small_vocab.py`` says when it runs.

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
def small_vocab_rows(
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
    p_workspace,
    tokens,
    num_partials,
    ignore_index,
    smoothing,
    z_loss,
    logit_scale,
    softcap,
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
    SPLITS: tl.constexpr,
    SLICES: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Compute loss and gradients of every P-th tile of tokens, in one pass over the input.

    H is cut into slices that the warps share, as a batched product: each warp multiplies its slice of
    a tile for all three products, so that the tile is read once, into shared memory; the slices'
    logits are summed, and the gradient of the weight stays in registers until the program's end. Rows
    of ignored tokens are not read, and what they hold reaches nothing.
    """
    WIDTH: tl.constexpr = SPLITS * SLICES * BLOCK_H
    i_program = tl.program_id(0)
    lane_t, c = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_C)
    # A slice is held in SPLITS blocks: the gradient of a whole tile of input would not fit the registers
    # beside all else.
    i_h = tl.arange(0, SLICES)[:, None, None] * SPLITS * BLOCK_H + tl.arange(0, BLOCK_H)[None, None, :]
    m_c = (c < classes)[None, :, None]
    p_w = p_weight + c[None, :, None] * hidden + i_h
    w, grad_weight = (), ()
    for i in tl.static_range(SPLITS):
        w += (tl.load(p_w + i * BLOCK_H, mask=m_c & (i * BLOCK_H + i_h < hidden), other=0.0),)  # type: ignore[assignment]
        grad_weight += (tl.zeros((SLICES, BLOCK_C, BLOCK_H), tl.float32),)  # type: ignore[assignment]
    bias, class_weight = load_classes(p_bias, p_class_weight, classes, HAS_BIAS, HAS_CLASS_WEIGHT, BLOCK_C)
    inverse = 1.0 / divisor(p_partial_sums, num_partials, HAS_DIVISOR, NUM_PARTIALS)

    grad_bias = tl.zeros((BLOCK_C,), tl.float32)
    loss_sum = tl.zeros((BLOCK_T,), tl.float32)
    valid = tl.zeros((BLOCK_T,), tl.int32)
    correct = tl.zeros((BLOCK_T,), tl.int32)
    invalid = tl.zeros((BLOCK_T,), tl.int32)
    for i_tile in tl.range(i_program, tl.cdiv(tokens, BLOCK_T), tl.num_programs(0), num_stages=STAGES):
        token = i_tile * BLOCK_T + lane_t
        target = tl.load(p_target + token, mask=token < tokens, other=ignore_index)
        m_t = target != ignore_index
        o_x = token.to(tl.int64)[None, :, None] * hidden + i_h
        z = tl.zeros((SLICES, BLOCK_T, BLOCK_C), tl.float32)
        x = ()
        for i in tl.static_range(SPLITS):
            m_x = m_t[None, :, None] & (i * BLOCK_H + i_h < hidden)
            x += (tl.load(p_input + o_x + i * BLOCK_H, mask=m_x, other=0.0),)  # type: ignore[assignment]
            z = tl.dot(x[i], tl.permute(w[i], (0, 2, 1)), z)
        loss, is_correct, g = tile_loss(
            tl.sum(z, 0) + bias[None, :],
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
        g = tl.broadcast_to(g.to(p_input.dtype.element_ty)[None, :, :], (SLICES, BLOCK_T, BLOCK_C))
        sums = ()
        for i in tl.static_range(SPLITS):
            if GRAD_WEIGHT:
                sums += (tl.dot(tl.permute(g, (0, 2, 1)), x[i], grad_weight[i]),)  # type: ignore[assignment]
            if GRAD_INPUT:
                m_grad = (token < tokens)[None, :, None] & (i * BLOCK_H + i_h < hidden)
                tl.store(p_grad_input + o_x + i * BLOCK_H, tl.dot(g, w[i]).to(g.dtype), mask=m_grad)
        if GRAD_WEIGHT:
            grad_weight = sums

    p_own = p_workspace
    if GRAD_WEIGHT:
        # Rows of a constant width: their addresses are cheap to compute here, and not kept through the loop.
        p_row = p_own + i_program * classes * WIDTH + c[None, :, None] * WIDTH + i_h
        for i in tl.static_range(SPLITS):
            tl.store(p_row + i * BLOCK_H, grad_weight[i], mask=m_c & (i * BLOCK_H + i_h < hidden))
        p_own += tl.num_programs(0) * classes * WIDTH
    if GRAD_BIAS:
        tl.store(p_own + i_program * classes + c, grad_bias, mask=c < classes)
        p_own += tl.num_programs(0) * classes
    store_totals(p_own, loss_sum, valid, correct, invalid)
