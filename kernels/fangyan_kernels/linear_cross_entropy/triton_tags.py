"""Linear cross-entropy over token tags on a GPU: a tile's logits never leave the chip.

Floor: the input read once, its gradient written once, 4 T H bytes in bfloat16, and 6 T H C
operations: about 40 classes at 700 TFLOP/s and 4 TB/s take as long as the bytes, more are bound by
the operations.

A program takes spans of tokens. In each it lists the labelled ones, so that ignored tokens cost 16
bytes and the zeros of their gradient; then, a tile of labelled tokens at a time, logits, loss and the
gradients of logits and input; then the span's part of the gradient of the weight, for which it reads
the span's input again, from the cache. The parts of all programs are summed by a second kernel, in a
fixed order: 4 P C H bytes more, written and read.

Shape suffixes: T tokens, H hidden, C classes, P programs, S tokens of a span.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fangyan_kernels.linear_cross_entropy.triton_shared import (
    PARTS,
    Call,
    divisor,
    launch_options,
    processors,
    tanh,
    token_loss,
)

FINISH_BLOCK = 512


@dataclass(frozen=True)
class Config:
    """How a shape is cut.

    Attributes:
        span: tokens of a span. Its input should stay in the second-level cache until it is read again;
            its part of the weight's gradient is read and written once a span.
        block_t, block_h, block_c: a tile's tokens, inputs and (padded) classes.
        warps, stages: of a program, and of its loads.
        programs: a multiprocessor.
    """

    span: int
    block_t: int
    block_h: int
    block_c: int
    warps: int
    stages: int
    programs: int


# By analysis and by the compiler's reports, not yet by a clock. A tile's logits, their exponentials and
# their gradients are floats of tile x classes: with these sizes they stay in the registers of every
# NVIDIA architecture since sm_80, and the operands in 52 KB of shared memory. Tiles of 64 tokens would
# use Hopper's wider products, but spill beyond 128 classes and do not compile for sm_100 (Triton 3.7).
CONFIGS = {
    2: {
        16: Config(span=128, block_t=32, block_h=64, block_c=16, warps=4, stages=3, programs=2),
        32: Config(span=128, block_t=32, block_h=64, block_c=32, warps=4, stages=3, programs=2),
        64: Config(span=128, block_t=32, block_h=32, block_c=64, warps=4, stages=3, programs=2),
        128: Config(span=512, block_t=32, block_h=32, block_c=128, warps=8, stages=3, programs=1),
        256: Config(span=512, block_t=32, block_h=32, block_c=256, warps=8, stages=3, programs=1),
    },
    4: {
        16: Config(span=128, block_t=32, block_h=32, block_c=16, warps=4, stages=2, programs=2),
        32: Config(span=128, block_t=32, block_h=16, block_c=32, warps=4, stages=2, programs=2),
        64: Config(span=128, block_t=16, block_h=16, block_c=64, warps=8, stages=2, programs=1),
        128: Config(span=512, block_t=16, block_h=16, block_c=128, warps=8, stages=2, programs=1),
    },
}


def most_tags(element_size: int) -> int:
    """The most classes that this regime takes."""
    return max(CONFIGS[element_size])


def choose_config(classes: int, element_size: int) -> Config:
    return CONFIGS[element_size][max(16, triton.next_power_of_2(classes))]


@triton.jit(do_not_specialize=["tokens", "ignore_index"])
def tag_spans(
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
    p_token,
    p_grad_logits,
    p_grad_weight,
    p_grad_bias,
    p_loss_sum,
    p_counts,
    tokens,
    hidden,
    classes,
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
    LOSS_T: tl.constexpr,
    GRAD_INPUT: tl.constexpr,
    GRAD_WEIGHT: tl.constexpr,
    GRAD_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    PARTS: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Loss and gradients of every P-th span; see ``reference.py`` for the formula.

    Products take their operands in the input's dtype and accumulate in float32, as does all else.
    """
    i_program = tl.program_id(0)
    lane_t, lane_h, c = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_C)
    m_c = c < classes
    dtype = p_input.dtype.element_ty
    class_weight = m_c.to(tl.float32)
    if HAS_SMOOTHING and HAS_CLASS_WEIGHT:
        class_weight = tl.load(p_class_weight + c, mask=m_c, other=0.0)
    class_weight_sum = tl.sum(class_weight, 0)
    spread = smoothing / classes
    inverse = 1.0 / divisor(p_parts, n_parts, GIVEN, PARTS)

    o_scratch = i_program.to(tl.int64) * SPAN
    p_own = p_grad_weight + i_program.to(tl.int64) * classes * hidden
    grad_bias = tl.zeros((BLOCK_C,), tl.float32)
    loss_sum = tl.zeros((BLOCK_T,), tl.float32)
    n_labelled, n_correct = 0, 0
    for i_span in range(i_program, tl.cdiv(tokens, SPAN), tl.num_programs(0)):
        # 1. List the labelled tokens, and give the ignored ones their zeros.
        token_span = i_span * SPAN + tl.arange(0, SPAN)
        target_span = tl.load(p_target + token_span, mask=token_span < tokens, other=ignore_index)
        m_labelled = target_span != ignore_index
        place = tl.cumsum(m_labelled.to(tl.int32), 0) - 1
        count = tl.sum(m_labelled.to(tl.int32), 0)
        tl.store(p_token + o_scratch + place, token_span, mask=m_labelled)
        m_ignored = (target_span == ignore_index) & (token_span < tokens)
        if LOSS_T:
            tl.store(p_loss + token_span, tl.zeros((SPAN,), tl.float32), mask=m_ignored)
        if PREDICT:
            tl.store(p_prediction + token_span, target_span, mask=m_ignored)
        if GRAD_INPUT:
            if count < SPAN:
                for o_t in range(0, SPAN, BLOCK_T):
                    i_t = i_span * SPAN + o_t + lane_t
                    m_zero = tl.load(p_target + i_t, mask=i_t < tokens, other=ignore_index) == ignore_index
                    m_zero = m_zero & (i_t < tokens)
                    p_zero = p_grad_input + i_t.to(tl.int64)[:, None] * hidden + lane_h[None, :]
                    for o_h in range(0, hidden, BLOCK_H):
                        m_tile = m_zero[:, None] & (o_h + lane_h[None, :] < hidden)
                        tl.store(p_zero + o_h, tl.zeros((BLOCK_T, BLOCK_H), dtype), mask=m_tile)
        tl.debug_barrier()  # the list is read by other threads than wrote it

        # 2. Logits, loss, and the gradients of logits and input.
        for o_t in range(0, count, BLOCK_T):
            m_t = o_t + lane_t < count
            token = tl.load(p_token + o_scratch + o_t + lane_t, mask=m_t, other=0)
            o_rows = token.to(tl.int64)[:, None] * hidden
            z = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
            for o_h in range(0, hidden, BLOCK_H):
                i_h = o_h + lane_h
                m_h = i_h < hidden
                x = tl.load(p_input + o_rows + i_h[None, :], mask=m_t[:, None] & m_h[None, :], other=0.0)
                w = tl.load(
                    p_weight + c[None, :] * hidden + i_h[:, None], mask=m_c[None, :] & m_h[:, None], other=0.0
                )
                z = tl.dot(x, w, z, input_precision=PRECISION)
            if HAS_BIAS:
                z += tl.load(p_bias + c, mask=m_c, other=0.0).to(tl.float32)[None, :]
            if HAS_SOFTCAP:
                share = tanh(z / softcap)
                z = softcap * share
                slope = 1.0 - share * share

            target = tl.load(p_target + token, mask=m_t, other=0).to(tl.int32)
            m_target = c[None, :] == target[:, None]
            z_target = tl.sum(tl.where(m_target, z, 0.0), 1)
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
            hit = tl.full((BLOCK_T,), 1.0, tl.float32) - smoothing
            if HAS_CLASS_WEIGHT:
                hit *= tl.load(p_class_weight + target, mask=m_t, other=0.0)
            token_weight = m_t.to(tl.float32)
            if HAS_TOKEN_WEIGHT:
                token_weight = tl.load(p_token_weight + token, mask=m_t, other=0.0)
            gap = log_sum + (max_z - z_target)
            loss = token_weight * token_loss(lse, gap, distance, hit, spread, class_weight_sum, z_loss)
            loss = tl.where(m_t, loss, 0.0)
            loss_sum += loss
            n_correct += tl.sum((m_t & (best == target)).to(tl.int32), 0)
            if LOSS_T:
                tl.store(p_loss + token, loss, mask=m_t)
            if PREDICT:
                tl.store(p_prediction + token, best.to(tl.int64), mask=m_t)

            if GRAD_INPUT or GRAD_WEIGHT or GRAD_BIAS:
                scale = token_weight * inverse
                factor = scale * (hit + spread * class_weight_sum + 2.0 * z_loss * lse) / sum_exp
                g = factor[:, None] * e - tl.where(m_target, (scale * hit)[:, None], 0.0)
                if HAS_SMOOTHING:
                    g -= (scale * spread)[:, None] * class_weight[None, :]
                if HAS_SOFTCAP:
                    g *= slope
                g = tl.where(m_t[:, None], g, 0.0)
                if GRAD_BIAS:
                    grad_bias += tl.sum(g, 0)
                g = g.to(dtype)
                if GRAD_WEIGHT:
                    o_g = (o_scratch + o_t + lane_t)[:, None] * BLOCK_C + c[None, :]
                    tl.store(p_grad_logits + o_g, g)
                if GRAD_INPUT:
                    for o_h in range(0, hidden, BLOCK_H):
                        i_h = o_h + lane_h[None, :]
                        w = tl.load(
                            p_weight + c[:, None] * hidden + i_h,
                            mask=m_c[:, None] & (i_h < hidden),
                            other=0.0,
                        )
                        grad = tl.dot(g, w, input_precision=PRECISION)
                        m_grad = m_t[:, None] & (i_h < hidden)
                        tl.store(p_grad_input + o_rows + i_h, grad.to(dtype), mask=m_grad)
        n_labelled += count

        # 3. The span's part of the weight's gradient.
        if GRAD_WEIGHT:
            tl.debug_barrier()
            for o_h in range(0, hidden, BLOCK_H):
                i_h = o_h + lane_h[None, :]
                m_own = m_c[:, None] & (i_h < hidden)
                p_tile = p_own + c[:, None] * hidden + i_h
                total = tl.load(p_tile, mask=m_own & (i_span != i_program), other=0.0)
                for o_t in range(0, count, BLOCK_T):
                    m_t = o_t + lane_t < count
                    token = tl.load(p_token + o_scratch + o_t + lane_t, mask=m_t, other=0)
                    x = tl.load(
                        p_input + token.to(tl.int64)[:, None] * hidden + i_h,
                        mask=m_t[:, None] & (i_h < hidden),
                        other=0.0,
                    )
                    o_g = (o_scratch + o_t + lane_t)[None, :] * BLOCK_C + c[:, None]
                    g = tl.load(p_grad_logits + o_g)
                    total = tl.dot(g, x, total, input_precision=PRECISION)
                tl.store(p_tile, total, mask=m_own)
        tl.debug_barrier()  # the next span writes over the list and the gradients

    if GRAD_BIAS:
        tl.store(p_grad_bias + i_program * classes + c, grad_bias, mask=m_c)
    tl.store(p_loss_sum + i_program, tl.sum(loss_sum, 0))
    tl.store(p_counts + 2 * i_program, n_labelled)
    tl.store(p_counts + 2 * i_program + 1, n_correct)


@triton.jit
def finish(
    p_own_weight,
    p_own_bias,
    p_loss_sum,
    p_counts,
    p_parts,
    p_grad_weight,
    p_grad_bias,
    p_loss,
    p_labelled,
    p_correct,
    n_weight,
    classes,
    programs,
    n_parts,
    REDUCE: tl.constexpr,
    GIVEN: tl.constexpr,
    GRAD_WEIGHT: tl.constexpr,
    GRAD_BIAS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums over the programs, in their order: 4 P C H bytes read."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if GRAD_WEIGHT:
        m = i < n_weight
        total = tl.zeros((BLOCK,), tl.float32)
        p_tile = p_own_weight + i
        for _ in range(0, programs):
            total += tl.load(p_tile, mask=m, other=0.0)
            p_tile += n_weight
        tl.store(p_grad_weight + i, total.to(p_grad_weight.dtype.element_ty), mask=m)
    if GRAD_BIAS:
        m = i < classes
        total = tl.zeros((BLOCK,), tl.float32)
        for i_program in range(0, programs):
            total += tl.load(p_own_bias + i_program * classes + i, mask=m, other=0.0)
        tl.store(p_grad_bias + i, total.to(p_grad_bias.dtype.element_ty), mask=m)
    if tl.program_id(0) == 0:
        lane = tl.arange(0, BLOCK)
        loss = tl.zeros((BLOCK,), tl.float32)
        labelled = tl.zeros((BLOCK,), tl.int32)
        correct = tl.zeros((BLOCK,), tl.int32)
        for o in range(0, programs, BLOCK):
            m_own = o + lane < programs
            loss += tl.load(p_loss_sum + o + lane, mask=m_own, other=0.0)
            labelled += tl.load(p_counts + 2 * (o + lane), mask=m_own, other=0)
            correct += tl.load(p_counts + 2 * (o + lane) + 1, mask=m_own, other=0)
        if REDUCE:
            tl.store(p_loss, tl.sum(loss, 0) / divisor(p_parts, n_parts, GIVEN, PARTS))
        tl.store(p_labelled, tl.sum(labelled, 0).to(tl.int64))
        tl.store(p_correct, tl.sum(correct, 0).to(tl.int64))


def linear_cross_entropy(call: Call) -> tuple[Tensor, ...]:
    """The operator's results, by two kernels."""
    input_TH, weight_CH, target_T = call.input_TH, call.weight_CH, call.target_T
    device, tokens, hidden, classes = input_TH.device, call.tokens, call.hidden, call.classes
    config = choose_config(classes, input_TH.element_size())
    most = config.programs * processors(device)
    # Few tokens: shorter spans, so that every multiprocessor has some. Two sizes alone, each compiled once.
    span = config.span if triton.cdiv(tokens, config.span) >= most else config.block_t
    programs = max(1, min(triton.cdiv(tokens, span), most))
    reduce = call.reduction != "none"

    def single(*sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=torch.float32, device=device)

    loss = single() if reduce else single(tokens)
    labelled, correct = (torch.empty((), dtype=torch.int64, device=device) for _ in range(2))
    prediction_T = torch.empty_like(target_T) if call.predict else target_T.new_empty(0)
    grad_input = torch.empty_like(input_TH) if call.grad_input else input_TH.new_empty(0)
    grad_weight = torch.empty_like(weight_CH) if call.grad_weight else weight_CH.new_empty(0)
    grad_bias = weight_CH.new_empty(classes if call.grad_bias else 0)
    token = torch.empty(programs * span, dtype=torch.int32, device=device)
    grad_logits = input_TH.new_empty(programs * span * config.block_c if call.grad_weight else 0)
    own_weight = single(programs, classes * hidden if call.grad_weight else 0)
    if tokens == 0:
        own_weight.zero_()  # no span writes it
    own_bias = single(programs, classes if call.grad_bias else 0)
    loss_sum, counts = single(programs), torch.empty(2 * programs, dtype=torch.int32, device=device)
    tag_spans[(programs,)](
        input_TH,
        weight_CH,
        p_loss=loss,
        p_prediction=prediction_T,
        p_grad_input=grad_input,
        p_token=token,
        p_grad_logits=grad_logits,
        p_grad_weight=own_weight,
        p_grad_bias=own_bias,
        p_loss_sum=loss_sum,
        p_counts=counts,
        tokens=tokens,
        hidden=hidden,
        classes=classes,
        LOSS_T=not reduce,
        GRAD_INPUT=call.grad_input,
        GRAD_WEIGHT=call.grad_weight,
        GRAD_BIAS=call.grad_bias,
        # Without tensor cores in float32, as torch.mm computes unless told otherwise.
        PRECISION="ieee",
        PARTS=PARTS,
        SPAN=span,
        BLOCK_T=config.block_t,
        BLOCK_H=config.block_h,
        BLOCK_C=config.block_c,
        **launch_options(config.warps, config.stages),
        **call.options(),
    )
    elements = max(classes * hidden if call.grad_weight else 0, classes if call.grad_bias else 0, 1)
    finish[(triton.cdiv(elements, FINISH_BLOCK),)](
        own_weight,
        own_bias,
        loss_sum,
        counts,
        call.pointer(call.parts),
        grad_weight,
        grad_bias,
        loss,
        labelled,
        correct,
        classes * hidden,
        classes,
        programs,
        0 if call.parts is None else call.parts.numel(),
        REDUCE=reduce,
        GIVEN=call.given,
        GRAD_WEIGHT=call.grad_weight,
        GRAD_BIAS=call.grad_bias,
        PARTS=PARTS,
        BLOCK=FINISH_BLOCK,
    )
    return loss, labelled, correct, prediction_T, grad_input, grad_weight, grad_bias
