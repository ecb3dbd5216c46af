"""Linear cross-entropy over many classes on a GPU: products by cuBLAS, the softmax between in place.

    logits_RC = input_RH weight'            (cuBLAS)
    g_RC      = gradient of the logits      (triton_softmax.py, over the logits)
    grad_input_RH = g_RC weight, grad_weight_CH += g_RC' input_RH     (cuBLAS)

a chunk of R tokens at a time, of the labelled ones alone where the caller knows their number.

Floor: 6 T H C operations. The products read and write the logits behind their arithmetic. Beside them stands
the softmax, 4 bytes per logit in bfloat16 (up to 6 where the cache does not hold a row until its second
read), and where there are several chunks their fp32 sum: 8 C H bytes per chunk, 6 C H at the end. On an H100
(3.0 TB/s, 798 TFLOP/s), for T = 8,192 in one chunk:

    H = 4,096, C = 128,256    products 32.4 ms, softmax 1.4 to 2.1 ms
    H = 768, C = 21,128       products  1.0 ms, softmax 0.23 ms

Rows of logits lie a multiple of 64 elements apart, so all leading dimensions of the three products are
multiples of 16 bytes wherever those of the inputs are, for any C. Extents stay C: padding them as well would
take a copy of the weight, and the loads of Hopper's products (TMA) ask for aligned strides alone.

Memory beside the results: the logits of a chunk; with several chunks 4 C H bytes more.

Shape suffixes: T tokens, L labelled tokens, R tokens of a chunk, H hidden, C classes.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from fangyan_kernels.launching import launch
from fangyan_kernels.linear_cross_entropy.triton_shared import (
    PARTS,
    TOTALS,
    Call,
    Flags,
    add_totals,
    processors,
)
from fangyan_kernels.linear_cross_entropy.triton_softmax import (
    MOST_TILE_CLASSES,
    choose_tile,
    softmax_tile,
)
from fangyan_kernels.linear_cross_entropy.triton_softmax_rows import row_options, softmax_row

ROW_ALIGNMENT = 64
CHUNK_BYTES = 1 << 30
LEAST_CHUNK = 256
REPAIR = {"BLOCK_C": 64, "BLOCK_H": 64, "BLOCK_R": 16, "num_warps": 4}


def row_stride(classes: int) -> int:
    """Elements from one row of logits to the next."""
    return triton.cdiv(classes, ROW_ALIGNMENT) * ROW_ALIGNMENT


def chunk_rows(tokens: int, hidden: int, classes: int, element_size: int) -> int:
    """Tokens of a chunk: the fewest chunks that their fp32 sum, 4 C H bytes, makes no dearer in memory.

    A chunk may have 1 GiB of logits, or as many as weigh what the sum does: fewer would save less than it
    takes. In a dtype of 2 bytes the sum is there besides the result, and a single chunk does without it, so
    all tokens are one where their logits are no more than the sum and a chunk's together.
    """
    row_bytes = max(1, row_stride(classes)) * element_size
    sum_bytes = 4 * classes * hidden
    most = max(LEAST_CHUNK, CHUNK_BYTES // row_bytes, sum_bytes // row_bytes)
    chunks = max(1, triton.cdiv(tokens, most))
    rows = triton.cdiv(tokens, chunks)
    saved = sum_bytes if element_size < 4 else 0
    return tokens if (tokens - rows) * row_bytes <= saved else rows


def linear_cross_entropy(call: Call, max_valid: int | None) -> tuple[Tensor, ...]:
    """The operator's results; rows are packed where ``max_valid`` says that it pays."""
    count = call.tokens if max_valid is None else min(max_valid, call.tokens)
    packed = count < call.tokens
    token_L = _labelled(call, count) if packed else None
    input_LH = call.input_TH if token_L is None else call.input_TH.index_select(0, token_L.clamp(min=0))
    # Of tokens: their kernels write those of their rows, which are not all where rows are packed.
    new = call.target_T.new_zeros if packed else call.target_T.new_empty
    loss_T, correct_T = new(call.tokens, dtype=torch.float32), new(call.tokens, dtype=torch.int8)
    prediction_T = (
        torch.full_like(call.target_T, call.ignore_index) if call.predict else call.target_T.new_empty(0)
    )
    results = loss_T, correct_T, prediction_T
    grad_LH, sums = _gradients(call, input_LH, token_L, results)

    device = call.target_T.device
    loss = loss_T if call.reduction == "none" else loss_T.new_empty(())
    labelled, correct = (torch.empty((), dtype=torch.int64, device=device) for _ in range(2))
    launch(
        add_totals,
        (1, 1),
        (loss_T, correct_T, call.target_T, call.parts, loss, labelled, correct),
        (call.tokens, call.numbers[0], call.ignore_index, count),
        (),
        _totals_options(call.reduction != "none", call.given),
    )
    return (loss, labelled, correct, prediction_T, _unpacked(call, grad_LH, token_L), *sums.results())


def _gradients(
    call: Call, input_LH: Tensor, token_L: Tensor | None, results: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor | None, _Sums]:
    """Those of the input's rows, and the sums of the head's; fills the tokens' ``results``."""
    count, weight_CH = input_LH.shape[0], call.weight_CH
    rows = chunk_rows(count, call.hidden, call.classes, input_LH.element_size())
    single = rows >= count
    logits = input_LH.new_empty(rows, row_stride(call.classes))
    grad_LH = torch.empty_like(input_LH) if call.grad_input else None
    repair = input_LH.new_zeros((), dtype=torch.int32) if single and call.grad_weight else None
    sums = _Sums(call)
    for start in range(0, count, max(1, rows)):
        chunk_RH = input_LH[start : start + rows]
        logits_RC = logits[: chunk_RH.shape[0], : call.classes]
        torch.mm(chunk_RH, weight_CH.T, out=logits_RC)
        _softmax(call, logits_RC, chunk_RH, token_L, start, results, repair)
        if grad_LH is not None:
            torch.mm(logits_RC, weight_CH, out=grad_LH[start : start + rows])
        if not single and call.grad_weight:
            chunk_RH = _without_ignored(call, chunk_RH, token_L, start)
        sums.add(logits_RC, chunk_RH, single)
    if repair is not None and count:
        _repair(call, logits[:count], input_LH, token_L, repair, sums)
    return grad_LH, sums


def _softmax(
    call: Call,
    logits_RC: Tensor,
    chunk_RH: Tensor,
    token_L: Tensor | None,
    start: int,
    results: tuple[Tensor, Tensor, Tensor],
    repair: Tensor | None,
) -> None:
    """A chunk's logits become their gradient; ``repair`` becomes 1 where a product needs it."""
    rows, classes = logits_RC.shape
    tensors = logits_RC, chunk_RH, token_L, *call.pointers, *results, repair
    fixed = row_stride(classes), call.hidden
    tiled = classes if classes <= MOST_TILE_CLASSES else 0
    given = token_L is not None, call.gradients, repair is not None
    options = _softmax_options(call.flags, *given, tiled, logits_RC.element_size())
    if tiled:
        grid = (triton.cdiv(rows, options["ROWS"]), 1)
        launch(softmax_tile, grid, tensors, (start, rows, *call.numbers, classes), fixed, options)
    else:
        launch(softmax_row, (rows, 1), tensors, (start, *call.numbers, classes), fixed, options)


@cache
def _softmax_options(
    flags: Flags, packed: bool, gradients: bool, checks: bool, tiled: int, element_size: int
) -> dict[str, int]:
    """``tiled``: classes of a row that is a tile's; 0 where a row has a program, or several."""
    given = {"PACKED": packed, "GRADIENTS": gradients, "CHECK_INPUT": checks, "PARTS": PARTS}
    if not tiled:
        return {**flags._asdict(), **given, **row_options(element_size, flags.HAS_SOFTCAP)}
    tile = choose_tile(tiled)
    blocks = {"ROWS": tile.rows, "BLOCK": tile.block, "num_warps": tile.warps}
    return {**flags._asdict(), **given, **blocks}


@cache
def _totals_options(reduce: bool, given: bool) -> dict[str, int]:
    return {"REDUCE": reduce, "GIVEN": given, "PARTS": PARTS, **TOTALS}


@cache
def _repair_options(packed: bool) -> dict[str, int]:
    return {"PACKED": packed, **REPAIR}


class _Sums:
    """The head's gradients, summed over chunks in float32; a single chunk needs no sum."""

    def __init__(self, call: Call):
        self._call = call
        self.weight_CH: Tensor | None = None
        self._bias_C: Tensor | None = None

    def add(self, g_RC: Tensor, chunk_RH: Tensor, single: bool) -> None:
        if self._call.grad_bias:
            part_C = g_RC.sum(0, dtype=torch.float32)
            self._bias_C = part_C if self._bias_C is None else self._bias_C.add_(part_C)
        if not self._call.grad_weight:
            return
        if single:
            self.weight_CH = g_RC.T @ chunk_RH
        elif g_RC.dtype == torch.float32 or not g_RC.is_cuda:
            left, right = g_RC.T.float(), chunk_RH.float()
            self.weight_CH = left @ right if self.weight_CH is None else self.weight_CH.addmm_(left, right)
        elif self.weight_CH is None:
            self.weight_CH = torch.mm(g_RC.T, chunk_RH, out_dtype=torch.float32)
        else:
            total = self.weight_CH
            torch.addmm(total, g_RC.T, chunk_RH, out_dtype=torch.float32, out=total)

    def results(self) -> tuple[Tensor, Tensor]:
        weight_CH = self._call.weight_CH
        nothing = weight_CH.new_empty(0)
        grad_weight, grad_bias = nothing, nothing
        if self._call.grad_weight:
            found = self.weight_CH
            grad_weight = torch.zeros_like(weight_CH) if found is None else found.to(weight_CH.dtype)
        if self._call.grad_bias:
            found = self._bias_C
            grad_bias = (
                weight_CH.new_zeros(self._call.classes) if found is None else found.to(weight_CH.dtype)
            )
        return grad_weight, grad_bias


@triton.jit(do_not_specialize=["rows", "ignore_index"])
def repair_grad_weight(
    p_repair,
    p_gradient,
    p_input,
    p_token,
    p_target,
    p_grad_weight,
    rows,
    ignore_index,
    stride,
    classes,
    hidden,
    PACKED: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """grad_weight_CH = g' input once more, over labelled rows alone, where ``p_repair`` holds 1.

    A row that no label needs has a gradient of 0, and times an inf or a NaN that is a NaN. It is rare: this
    is slower than cuBLAS, and costs a launch and 4 bytes per program where there is nothing to repair.
    """
    if tl.load(p_repair) != 0:
        columns = tl.cdiv(hidden, BLOCK_H)
        for tile in range(tl.program_id(0), tl.cdiv(classes, BLOCK_C) * columns, tl.num_programs(0)):
            i_c = (tile // columns * BLOCK_C + tl.arange(0, BLOCK_C))[:, None]
            i_h = (tile % columns * BLOCK_H + tl.arange(0, BLOCK_H))[None, :]
            total = tl.zeros((BLOCK_C, BLOCK_H), tl.float32)
            for o in range(0, rows, BLOCK_R):
                i_r = o + tl.arange(0, BLOCK_R)
                token = i_r.to(tl.int64)
                m_r = i_r < rows
                if PACKED:
                    token = tl.load(p_token + i_r, mask=m_r, other=-1)
                    m_r = token >= 0
                m_r = tl.load(p_target + token, mask=m_r, other=ignore_index) != ignore_index
                place = i_r.to(tl.int64)
                p_g = p_gradient + place[None, :] * stride + i_c
                g = tl.load(p_g, mask=m_r[None, :] & (i_c < classes), other=0.0)
                x = tl.load(
                    p_input + place[:, None] * hidden + i_h, mask=m_r[:, None] & (i_h < hidden), other=0.0
                )
                total = tl.dot(g, x, total, input_precision="ieee")
            tl.store(
                p_grad_weight + i_c.to(tl.int64) * hidden + i_h,
                total.to(p_grad_weight.dtype.element_ty),
                mask=(i_c < classes) & (i_h < hidden),
            )


def _repair(
    call: Call, gradient: Tensor, input_LH: Tensor, token_L: Tensor | None, repair: Tensor, sums: _Sums
) -> None:
    launch(
        repair_grad_weight,
        (processors(gradient.device), 1),
        (repair, gradient, input_LH, token_L, call.target_T, sums.weight_CH),
        (input_LH.shape[0], call.ignore_index),
        (gradient.stride(0), call.classes, call.hidden),
        _repair_options(token_L is not None),
    )


def _labelled(call: Call, count: int) -> Tensor:
    """The labelled tokens, (count,), int64, and -1 for what is too many of them; no host waits for it."""
    mask_T = call.target_T != call.ignore_index
    return torch.nonzero_static(mask_T, size=count, fill_value=-1)[:, 0]


def _without_ignored(call: Call, chunk_RH: Tensor, token_L: Tensor | None, start: int) -> Tensor:
    """The chunk with zeros where no label is: an inf or a NaN there times a gradient of 0 would be NaN."""
    stop = start + chunk_RH.shape[0]
    labelled = call.target_T[start:stop] != call.ignore_index if token_L is None else token_L[start:stop] >= 0
    return torch.where(labelled[:, None], chunk_RH, 0.0)


def _unpacked(call: Call, grad_LH: Tensor | None, token_L: Tensor | None) -> Tensor:
    if grad_LH is None:
        return call.input_TH.new_empty(0)
    if token_L is None:
        return grad_LH
    # One more row takes what belongs to no token.
    grad_TH = call.input_TH.new_zeros(call.tokens + 1, call.hidden)
    token_L = torch.where(token_L < 0, call.tokens, token_L)
    return grad_TH.index_copy_(0, token_L, grad_LH)[:-1]
