"""The kernels of linear cross-entropy over token tags; ``triton_small_vocab.py`` says which runs, and why.

Products take their operands in the input's dtype and accumulate in float32, as does all else.

Prefixes: p_ pointer, i_ index, o_ offset, m_ mask.
Workspace of a call, float32: the programs' gradients of the weight, of the bias, then their totals.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fangyan_kernels.linear_cross_entropy.triton_shared import divisor, tanh, token_loss

# Varies from batch to batch: specialized on being 1 or a multiple of 16, a kernel would be compiled anew
# for a last batch.
VARYING = ["tokens", "n_parts", "programs", "splits", "ignore_index", "max_valid"]


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
    softcap,
    HAS_CLASS_WEIGHT: tl.constexpr,
    HAS_TOKEN_WEIGHT: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    PREDICT: tl.constexpr,
    LOSS_T: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """From a tile of logits, losses, hits and the logits' gradient; see ``reference.py`` for the formula.

    What is asked for per token is stored. A target that is no class reads nothing; ``finish`` reports it.
    """
    c = tl.arange(0, BLOCK_C)
    m_c = c < classes
    m_t = target != ignore_index
    i_target = target.to(tl.int32)
    if HAS_SOFTCAP:
        share = tanh(z / softcap)
        z = softcap * share
    m_target = c[None, :] == i_target[:, None]
    z_target = tl.sum(tl.where(m_target, z, 0.0), 1)
    hit = tl.full((BLOCK_T,), 1.0, tl.float32) - smoothing
    if HAS_CLASS_WEIGHT:
        hit *= tl.sum(tl.where(m_target, class_weight[None, :], 0.0), 1)
    spread, class_weight_sum = smoothing / classes, tl.sum(class_weight, 0)
    distance = tl.zeros((BLOCK_T,), tl.float32)
    if HAS_SMOOTHING:
        distance = tl.sum(class_weight[None, :] * (z_target[:, None] - z), 1)
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
    gap = log_sum + (max_z - z_target)
    loss = token_weight * token_loss(lse, gap, distance, hit, spread, class_weight_sum, z_loss)
    loss = tl.where(m_t, loss, 0.0)
    if LOSS_T:
        tl.store(p_loss + token, loss, mask=token < tokens)
    if PREDICT:
        tl.store(p_prediction + token, tl.where(m_t, best.to(tl.int64), target), mask=token < tokens)

    scale = token_weight * inverse
    factor = scale * (hit + spread * class_weight_sum + 2.0 * z_loss * lse) / sum_exp
    g = factor[:, None] * e - tl.where(m_target, (scale * hit)[:, None], 0.0)
    if HAS_SMOOTHING:
        g -= (scale * spread)[:, None] * class_weight[None, :]
    if HAS_SOFTCAP:
        g *= 1.0 - share * share
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
    """The bias and the weight of every class."""
    c = tl.arange(0, BLOCK_C)
    bias, class_weight = tl.zeros((BLOCK_C,), tl.float32), (c < classes).to(tl.float32)
    if HAS_BIAS:
        bias = tl.load(p_bias + c, mask=c < classes, other=0.0).to(tl.float32)
    if HAS_CLASS_WEIGHT:
        class_weight = tl.load(p_class_weight + c, mask=c < classes, other=0.0)
    return bias, class_weight


@triton.jit
def store_totals(p_totals, loss, labelled, correct, invalid):
    """A program's row of totals: counts stay below 2^24, which float32 holds exactly."""
    p_row = p_totals + 4 * tl.program_id(0)
    tl.store(p_row, tl.sum(loss, 0))
    tl.store(p_row + 1, tl.sum(labelled, 0).to(tl.float32))
    tl.store(p_row + 2, tl.sum(correct, 0).to(tl.float32))
    tl.store(p_row + 3, tl.sum(invalid, 0).to(tl.float32))


@triton.jit(do_not_specialize=VARYING)
def tag_rows(
    p_input,
    p_weight,
    p_bias,
    p_target,
    p_class_weight,
    p_token_weight,
    p_parts,
    p_loss,
    p_prediction,
    p_grad_input,
    p_workspace,
    tokens,
    n_parts,
    ignore_index,
    smoothing,
    z_loss,
    softcap,
    hidden,
    classes,
    HAS_BIAS: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    HAS_TOKEN_WEIGHT: tl.constexpr,
    GIVEN: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    PREDICT: tl.constexpr,
    LOSS_T: tl.constexpr,
    GRAD_INPUT: tl.constexpr,
    GRAD_WEIGHT: tl.constexpr,
    GRAD_BIAS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    SPLITS: tl.constexpr,
    SLICES: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Loss and every gradient of every P-th tile of tokens, in one pass over the input.

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
    inverse = 1.0 / divisor(p_parts, n_parts, GIVEN, PARTS)

    grad_bias = tl.zeros((BLOCK_C,), tl.float32)
    loss_sum = tl.zeros((BLOCK_T,), tl.float32)
    labelled = tl.zeros((BLOCK_T,), tl.int32)
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
        loss, hit, g = tile_loss(
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
            softcap,
            HAS_CLASS_WEIGHT,
            HAS_TOKEN_WEIGHT,
            HAS_SMOOTHING,
            HAS_SOFTCAP,
            PREDICT,
            LOSS_T,
            BLOCK_T,
            BLOCK_C,
        )
        loss_sum += loss
        labelled += m_t.to(tl.int32)
        correct += hit.to(tl.int32)
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
    store_totals(p_own, loss_sum, labelled, correct, invalid)


@triton.jit(do_not_specialize=VARYING)
def tag_logits(
    p_input,
    p_weight,
    p_bias,
    p_target,
    p_class_weight,
    p_token_weight,
    p_parts,
    p_loss,
    p_prediction,
    p_grad_input,
    p_grad_logits,
    p_workspace,
    tokens,
    n_parts,
    ignore_index,
    smoothing,
    z_loss,
    softcap,
    splits,
    hidden,
    classes,
    HAS_BIAS: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    HAS_TOKEN_WEIGHT: tl.constexpr,
    GIVEN: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    PREDICT: tl.constexpr,
    LOSS_T: tl.constexpr,
    GRAD_INPUT: tl.constexpr,
    GRAD_WEIGHT: tl.constexpr,
    GRAD_BIAS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Loss, and the gradients of logits and input, of every P-th tile of tokens, H a block at a time."""
    i_program = tl.program_id(0)
    lane_t, lane_h, c = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_C)
    m_c = c < classes
    dtype = p_input.dtype.element_ty
    inverse = 1.0 / divisor(p_parts, n_parts, GIVEN, PARTS)

    grad_bias = tl.zeros((BLOCK_C,), tl.float32)
    loss_sum = tl.zeros((BLOCK_T,), tl.float32)
    labelled = tl.zeros((BLOCK_T,), tl.int32)
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
        loss, hit, g = tile_loss(
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
            softcap,
            HAS_CLASS_WEIGHT,
            HAS_TOKEN_WEIGHT,
            HAS_SMOOTHING,
            HAS_SOFTCAP,
            PREDICT,
            LOSS_T,
            BLOCK_T,
            BLOCK_C,
        )
        loss_sum += loss
        labelled += m_t.to(tl.int32)
        correct += hit.to(tl.int32)
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
    store_totals(p_own, loss_sum, labelled, correct, invalid)


@triton.jit(do_not_specialize=VARYING)
def tag_weight(
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
    """A block of the weight's gradient from every S-th tile of tokens; ignored tokens are not read."""
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


@triton.jit(do_not_specialize=VARYING, debug=True)
def finish(
    p_workspace,
    p_parts,
    p_grad_weight,
    p_grad_bias,
    p_loss,
    p_labelled,
    p_correct,
    splits,
    programs,
    n_parts,
    max_valid,
    hidden,
    classes,
    width,
    REDUCE: tl.constexpr,
    GIVEN: tl.constexpr,
    GRAD_WEIGHT: tl.constexpr,
    GRAD_BIAS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums over the programs in a fixed order, each program here a few columns; the last one the totals.

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
        labelled = tl.sum(tl.where(lane_4 == 1, counts, 0))
        invalid = tl.sum(tl.where(lane_4 == 3, counts, 0))
        tl.device_assert(invalid == 0, "linear_cross_entropy: a target is no class")
        tl.device_assert(
            labelled <= max_valid, "linear_cross_entropy: more targets are labelled than max_valid"
        )
        if REDUCE:
            tl.store(p_loss, tl.sum(losses) / divisor(p_parts, n_parts, GIVEN, PARTS))
        tl.store(p_labelled, labelled.to(tl.int64))
        tl.store(p_correct, tl.sum(tl.where(lane_4 == 2, counts, 0)).to(tl.int64))
