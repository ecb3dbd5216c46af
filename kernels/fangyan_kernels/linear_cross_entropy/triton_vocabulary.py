"""Linear cross-entropy over a vocabulary on a GPU: products by cuBLAS, the softmax between in place.

    logits_RC = input_RH weight'            (cuBLAS)
    g_RC      = gradient of the logits      (one program a row, over the logits)
    grad_input_RH = g_RC weight, grad_weight_CH += g_RC' input_RH     (cuBLAS)

a chunk of R labelled tokens at a time. Floor: three products, 6 T H C operations. The softmax adds
6 bytes a logit in bfloat16 (read twice, written once), about 5% of the products' time at H = 4096 and
20% at H = 768 on a card of 4 TB/s and 700 TFLOP/s; the sum of the chunks' grad_weight is in float32.

Shape suffixes: T tokens, L labelled tokens, R tokens of a chunk, H hidden, C classes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fangyan_kernels.linear_cross_entropy.triton_shared import (
    PARTS,
    TOTALS_BLOCK,
    Call,
    add_totals,
    divisor,
    launch_options,
    tanh,
    token_loss,
)

# Logits of a chunk. Fewer chunks read and write grad_weight's sum less often: at C = 128,256 these
# are 4,096 tokens in bfloat16, two chunks of 8,192.
CHUNK_BYTES = 1 << 30
LEAST_CHUNK = 256
BLOCK = 4096
WARPS = 8


@triton.jit(do_not_specialize=["start", "ignore_index"])
def softmax_rows(
    p_logits,
    p_token,
    p_bias,
    p_target,
    p_class_weight,
    p_token_weight,
    p_parts,
    p_loss,
    p_correct,
    p_prediction,
    start,
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
    PACKED: tl.constexpr,
    GRADIENTS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A row of logits becomes its gradient; see ``reference.py`` for the formula.

    Online softmax (Milakov & Gimelshein 2018, arXiv 1805.02867) with a running maximum a lane, so
    that lanes meet once. Reads a row twice, the second time mostly from the cache, and writes it
    once. Everything between is float32.
    """
    i_row = tl.program_id(0)
    o_row = i_row.to(tl.int64) * classes
    if PACKED:  # a negative token fills a row that no label needs
        token = tl.load(p_token + start + i_row)
    else:
        token = (start + i_row).to(tl.int64)
    target = tl.load(p_target + token, mask=token >= 0, other=ignore_index)
    lane = tl.arange(0, BLOCK)
    if target == ignore_index:
        if GRADIENTS:
            for o in range(0, classes, BLOCK):
                zero = tl.zeros((BLOCK,), p_logits.dtype.element_ty)
                tl.store(p_logits + o_row + o + lane, zero, mask=o + lane < classes)
    else:
        z_target = tl.load(p_logits + o_row + target).to(tl.float32)
        if HAS_BIAS:
            z_target += tl.load(p_bias + target).to(tl.float32)
        if HAS_SOFTCAP:
            z_target = softcap * tanh(z_target / softcap)

        max_lane = tl.full((BLOCK,), -3.4e38, tl.float32)
        sum_lane = tl.zeros((BLOCK,), tl.float32)
        best_lane = tl.zeros((BLOCK,), tl.int32)
        distance = tl.zeros((BLOCK,), tl.float32)
        weight_lane = tl.zeros((BLOCK,), tl.float32)
        for o in range(0, classes, BLOCK):
            c = o + lane
            m_c = c < classes
            z = tl.load(p_logits + o_row + c, mask=m_c, other=0.0).to(tl.float32)
            if HAS_BIAS:
                z += tl.load(p_bias + c, mask=m_c, other=0.0).to(tl.float32)
            if HAS_SOFTCAP:
                z = softcap * tanh(z / softcap)
            if HAS_SMOOTHING:
                weight = m_c.to(tl.float32)
                if HAS_CLASS_WEIGHT:
                    weight = tl.load(p_class_weight + c, mask=m_c, other=0.0)
                distance += weight * (z_target - z)
                weight_lane += weight
            z = tl.where(m_c, z, -float("inf"))
            higher = tl.maximum(max_lane, z)
            best_lane = tl.where(z > max_lane, c, best_lane)
            sum_lane = sum_lane * tl.exp(max_lane - higher) + tl.exp(z - higher)
            max_lane = higher
        max_z = tl.max(max_lane, 0)
        sum_exp = tl.sum(sum_lane * tl.exp(max_lane - max_z), 0)
        best = tl.min(tl.where(max_lane == max_z, best_lane, classes), 0)
        class_weight_sum = tl.sum(weight_lane, 0)

        log_sum = tl.log(sum_exp)
        lse = max_z + log_sum
        hit = 1.0 - smoothing
        if HAS_CLASS_WEIGHT:
            hit *= tl.load(p_class_weight + target)
        spread = smoothing / classes
        token_weight = 1.0
        if HAS_TOKEN_WEIGHT:
            token_weight = tl.load(p_token_weight + token)
        # The maximum is subtracted first: a small loss is no difference of large numbers.
        gap = log_sum + (max_z - z_target)
        loss = token_loss(lse, gap, tl.sum(distance, 0), hit, spread, class_weight_sum, z_loss)
        tl.store(p_loss + token, token_weight * loss)
        tl.store(p_correct + token, (best == target).to(tl.int8))
        if PREDICT:
            tl.store(p_prediction + token, best.to(tl.int64))

        if GRADIENTS:
            scale = token_weight / divisor(p_parts, n_parts, GIVEN, PARTS)
            factor = scale * (hit + spread * class_weight_sum + 2.0 * z_loss * lse) / sum_exp
            for o in range(0, classes, BLOCK):
                c = o + lane
                m_c = c < classes
                z = tl.load(p_logits + o_row + c, mask=m_c, other=0.0).to(tl.float32)
                if HAS_BIAS:
                    z += tl.load(p_bias + c, mask=m_c, other=0.0).to(tl.float32)
                if HAS_SOFTCAP:
                    share = tanh(z / softcap)
                    z = softcap * share
                g = factor * tl.exp(z - max_z) - tl.where(c == target, scale * hit, 0.0)
                if HAS_SMOOTHING and HAS_CLASS_WEIGHT:
                    g -= scale * spread * tl.load(p_class_weight + c, mask=m_c, other=0.0)
                elif HAS_SMOOTHING:
                    g -= scale * spread
                if HAS_SOFTCAP:
                    g *= 1.0 - share * share
                tl.store(p_logits + o_row + c, g.to(p_logits.dtype.element_ty), mask=m_c)


def linear_cross_entropy(call: Call, most_labelled: int | None) -> tuple[Tensor, ...]:
    """The operator's results; rows are packed where ``most_labelled`` says that it pays."""
    input_TH, weight_CH, tokens = call.input_TH, call.weight_CH, call.tokens
    count = tokens if most_labelled is None else min(most_labelled, tokens)
    packed = count < tokens
    token_L = _labelled(call, count) if packed else None
    input_LH = _inputs(call, token_L)

    device = input_TH.device
    loss_T = torch.zeros(tokens, dtype=torch.float32, device=device)
    correct_T = torch.zeros(tokens, dtype=torch.int8, device=device)
    prediction_T = (
        torch.full_like(call.target_T, call.ignore_index) if call.predict else call.target_T.new_empty(0)
    )
    grad_LH = torch.empty_like(input_LH) if call.grad_input else None
    sums = _Sums(call)
    most = max(LEAST_CHUNK, CHUNK_BYTES // (max(1, call.classes) * input_TH.element_size()))
    chunks = triton.cdiv(count, most)
    size = triton.cdiv(count, max(1, chunks))
    logits = input_TH.new_empty(size, call.classes)
    for start in range(0, count, max(1, size)):
        chunk_RH = input_LH[start : start + size]
        logits_RC = torch.mm(chunk_RH, weight_CH.T, out=logits[: chunk_RH.shape[0]])
        softmax_rows[(chunk_RH.shape[0],)](
            logits_RC,
            p_token=call.pointer(token_L),
            p_loss=loss_T,
            p_correct=correct_T,
            p_prediction=prediction_T,
            start=start,
            classes=call.classes,
            PACKED=packed,
            GRADIENTS=call.gradients,
            PARTS=PARTS,
            BLOCK=min(BLOCK, triton.next_power_of_2(call.classes)),
            **launch_options(WARPS),
            **call.options(),
        )
        if grad_LH is not None:
            torch.mm(logits_RC, weight_CH, out=grad_LH[start : start + size])
        sums.add(logits_RC, chunk_RH, chunks)

    loss = loss_T if call.reduction == "none" else loss_T.new_empty(())
    labelled, correct = (torch.empty((), dtype=torch.int64, device=device) for _ in range(2))
    add_totals[(1,)](
        loss_T,
        correct_T,
        call.target_T,
        call.pointer(call.parts),
        loss,
        labelled,
        correct,
        tokens,
        0 if call.parts is None else call.parts.numel(),
        call.ignore_index,
        count,
        REDUCE=call.reduction != "none",
        GIVEN=call.given,
        PARTS=PARTS,
        BLOCK=TOTALS_BLOCK,
    )
    return (loss, labelled, correct, prediction_T, _unpacked(call, grad_LH, token_L), *sums.results())


class _Sums:
    """The head's gradients, summed over chunks in float32; a single chunk needs no sum."""

    def __init__(self, call: Call):
        self._call = call
        self._weight_CH: Tensor | None = None
        self._bias_C: Tensor | None = None

    def add(self, g_RC: Tensor, chunk_RH: Tensor, chunks: int) -> None:
        if self._call.grad_bias:
            part_C = g_RC.sum(0, dtype=torch.float32)
            self._bias_C = part_C if self._bias_C is None else self._bias_C.add_(part_C)
        if not self._call.grad_weight:
            return
        if chunks == 1:
            self._weight_CH = g_RC.T @ chunk_RH
        elif g_RC.dtype == torch.float32 or not g_RC.is_cuda:
            left, right = g_RC.T.float(), chunk_RH.float()
            self._weight_CH = left @ right if self._weight_CH is None else self._weight_CH.addmm_(left, right)
        elif self._weight_CH is None:
            self._weight_CH = torch.mm(g_RC.T, chunk_RH, out_dtype=torch.float32)
        else:
            total = self._weight_CH
            torch.addmm(total, g_RC.T, chunk_RH, out_dtype=torch.float32, out=total)

    def results(self) -> tuple[Tensor, Tensor]:
        weight_CH = self._call.weight_CH
        nothing = weight_CH.new_empty(0)
        grad_weight, grad_bias = nothing, nothing
        if self._call.grad_weight:
            found = self._weight_CH
            grad_weight = torch.zeros_like(weight_CH) if found is None else found.to(weight_CH.dtype)
        if self._call.grad_bias:
            found = self._bias_C
            grad_bias = (
                weight_CH.new_zeros(self._call.classes) if found is None else found.to(weight_CH.dtype)
            )
        return grad_weight, grad_bias


def _labelled(call: Call, count: int) -> Tensor:
    """The labelled tokens, (count,), int64, and -1 for what is too many of them; no host waits for it."""
    mask_T = call.target_T != call.ignore_index
    return torch.nonzero_static(mask_T, size=count, fill_value=-1)[:, 0]


def _inputs(call: Call, token_L: Tensor | None) -> Tensor:
    """The rows of the products; zeros where no label is: a NaN there times a gradient of 0 would be NaN."""
    if token_L is None:
        labelled, input_LH = call.target_T != call.ignore_index, call.input_TH
    else:
        labelled, input_LH = token_L >= 0, call.input_TH.index_select(0, token_L.clamp(min=0))
    return torch.where(labelled[:, None], input_LH, 0.0)


def _unpacked(call: Call, grad_LH: Tensor | None, token_L: Tensor | None) -> Tensor:
    if grad_LH is None:
        return call.input_TH.new_empty(0)
    if token_L is None:
        return grad_LH
    # One more row takes what belongs to no token.
    grad_TH = call.input_TH.new_zeros(call.tokens + 1, call.hidden)
    token_L = torch.where(token_L < 0, call.tokens, token_L)
    return grad_TH.index_copy_(0, token_L, grad_LH)[:-1]
