"""Linear cross-entropy over many classes on a GPU: products by cuBLAS, the softmax between in place.

    logits_RC = input_RH weight'            (cuBLAS)
    g_RC      = gradient of the logits      (triton_softmax.py, over the logits)
    grad_input_RH = g_RC weight, grad_weight_CH += g_RC' input_RH     (cuBLAS)

a chunk of R tokens at a time, of the valid ones alone where the caller knows a bound of their number.

Floor: 6 T H C operations. The products read and write the logits behind their arithmetic. Beside them stands
the softmax, 4 bytes per logit in bfloat16 (up to 6 where the cache does not hold a row until its second
read), and where there are several chunks their fp32 sum: 8 C H bytes per chunk, 6 C H at the end. On an H100
(3.0 TB/s, 798 TFLOP/s), for T = 8,192 in one chunk:

    H = 4,096, C = 128,256    products 32.4 ms, softmax 1.4 to 2.1 ms
    H = 768, C = 21,128       products  1.0 ms, softmax 0.23 ms

Rows of logits lie a multiple of 64 elements apart, so all leading dimensions of the three products are
multiples of 16 bytes wherever those of the inputs are, for any C. Their extents have to be too, or cuBLAS
falls back to kernels of other cards: 5.3 ms where C = 21,128 takes 1.1. So the last C mod 8 classes have
products of their own, with rows of zeros to fill them up; up to 4,096 classes, where reading the input once
more would take longer than copying the weight, all classes are filled up together.

Memory beside the results: the logits of a chunk; with several chunks 4 C H bytes more; up to 4,096 classes
that are no multiple of 8, a copy of the weight.

Shape suffixes: T tokens, L valid tokens, R tokens of a chunk, H hidden, C classes.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from fangyan_kernels.launching import launch
from fangyan_kernels.linear_cross_entropy.triton_shared import (
    NUM_PARTIALS,
    Call,
    Flags,
    processors,
    reduce_options,
    reduce_partials,
    total_tokens,
)
from fangyan_kernels.linear_cross_entropy.triton_softmax import (
    MAX_TILE_CLASSES,
    choose_tile,
    softmax_tile,
)
from fangyan_kernels.linear_cross_entropy.triton_softmax_rows import row_options, softmax_row
from fangyan_kernels.ops.linear_cross_entropy import Results

ROW_ALIGNMENT = 64
CHUNK_BYTES = 1 << 30
LEAST_CHUNK = 256
REPAIR = {"BLOCK_C": 64, "BLOCK_H": 64, "BLOCK_R": 16, "num_warps": 4}


def row_stride(classes: int) -> int:
    """Return the elements from one row of logits to the next."""
    return -(-classes // ROW_ALIGNMENT) * ROW_ALIGNMENT


def chunk_rows(tokens: int, hidden: int, classes: int, element_size: int) -> int:
    """Choose the tokens per chunk: the fewest chunks whose fp32 sum, 4 C H bytes, costs no extra memory.

    A chunk may have 1 GiB of logits, or as many bytes as the sum: smaller ones would save less than the sum
    takes. In a dtype of 2 bytes the sum exists besides the result, and a single chunk needs none, so there is
    one chunk where all logits take no more than the sum and a chunk's together.
    """
    row_bytes = max(1, row_stride(classes)) * element_size
    sum_bytes = 4 * classes * hidden
    most = max(LEAST_CHUNK, CHUNK_BYTES // row_bytes, sum_bytes // row_bytes)
    chunks = max(1, triton.cdiv(tokens, most))
    rows = triton.cdiv(tokens, chunks)
    saved = sum_bytes if element_size < 4 else 0
    return tokens if (tokens - rows) * row_bytes <= saved else rows


class _Block(NamedTuple):
    """Some classes, and their rows of the weight; rows of zeros may follow.

    Attributes:
        columns: of the logits, as many as there are rows.
        weight_BH: the rows.
    """

    columns: slice
    weight_BH: Tensor


def class_blocks(weight_CH: Tensor) -> list[_Block]:
    """Divide the classes so that every product's extent is a multiple of 16 bytes; the last classes first.

    Their part of the input's gradient is the smaller, and loses least by being rounded before it is added to.
    """
    classes, alignment = len(weight_CH), 16 // weight_CH.element_size()
    start = 0 if classes <= MAX_TILE_CLASSES else classes // alignment * alignment
    blocks = [_Block(slice(0, start), weight_CH[:start])] if start else []
    if start < classes:
        missing = -classes % alignment
        last_BH = F.pad(weight_CH[start:], (0, 0, 0, missing)) if missing else weight_CH[start:]
        blocks.insert(0, _Block(slice(start, classes + missing), last_BH))
    return blocks


class _PerToken(NamedTuple):
    """What the softmax kernels write for each token."""

    loss_T: Tensor
    correct_T: Tensor
    prediction_T: Tensor


def linear_cross_entropy(call: Call) -> tuple[Tensor, ...]:
    """Compute the operator's results; rows are packed where ``max_valid`` is below the number of tokens."""
    inputs, options = call.inputs, call.options
    tokens, _, _ = call.shape
    count = tokens if options.max_valid is None else min(options.max_valid, tokens)
    packed = count < tokens
    token_L = _valid_tokens(call, count) if packed else None
    input_LH = inputs.input_TH if token_L is None else inputs.input_TH.index_select(0, token_L.clamp(min=0))
    per_token = _empty_per_token(call, packed)
    grad_LH, sums = _gradients(call, input_LH, token_L, per_token)

    reduces, target_T = options.reduction != "none", inputs.target_T
    loss = per_token.loss_T.new_empty(()) if reduces else per_token.loss_T
    num_valid, num_correct = target_T.new_empty(()), target_T.new_empty(())
    totals = total_tokens(per_token.loss_T, per_token.correct_T, target_T, options.ignore_index)
    launch(
        reduce_partials,
        (1, 1),
        (totals, call.partial_sums, None, None, loss, num_valid, num_correct),
        (0, len(totals), call.num_partials, count),
        (0, 0, 0),
        reduce_options(reduces, call.has_divisor),
    )
    grad_TH = _unpacked(call, grad_LH, token_L)
    return Results(loss, num_valid, num_correct, per_token.prediction_T, grad_TH, *sums.results())


def _empty_per_token(call: Call, packed: bool) -> _PerToken:
    target_T, options = call.inputs.target_T, call.options
    # Kernels write what belongs to their rows, which are not all where rows are packed.
    new = target_T.new_zeros if packed else target_T.new_empty
    prediction_T = target_T.new_empty(0)
    if options.predict:
        prediction_T = torch.full_like(target_T, options.ignore_index)
    tokens = target_T.numel()
    return _PerToken(new(tokens, dtype=torch.float32), new(tokens, dtype=torch.int8), prediction_T)


def _gradients(
    call: Call, input_LH: Tensor, token_L: Tensor | None, per_token: _PerToken
) -> tuple[Tensor | None, _Sums]:
    """Compute the gradients of the input's rows and the sums of the head's; fill ``per_token``."""
    count, weight_CH = input_LH.shape[0], call.inputs.weight_CH
    classes, hidden = weight_CH.shape
    rows = chunk_rows(count, hidden, classes, input_LH.element_size())
    single = rows >= count
    logits = input_LH.new_empty(rows, row_stride(classes))
    blocks = class_blocks(weight_CH)
    grad_LH = torch.empty_like(input_LH) if call.options.grad_input else None
    repairs = single and call.options.grad_weight
    repair = input_LH.new_zeros((), dtype=torch.int32) if repairs else None
    sums = _Sums(call)
    for start in range(0, count, max(1, rows)):
        chunk_RH = input_LH[start : start + rows]
        logits_RS = logits[: chunk_RH.shape[0]]
        logits_RC = logits_RS[:, :classes]
        for block in blocks:
            torch.mm(chunk_RH, block.weight_BH.T, out=logits_RS[:, block.columns])
        _softmax(call, logits_RC, chunk_RH, token_L, start, per_token, repair)
        if grad_LH is not None:
            _multiply(logits_RS, blocks, grad_LH[start : start + rows])
        if not single and call.options.grad_weight:
            chunk_RH = _without_ignored(call, chunk_RH, token_L, start)
        sums.add(logits_RS, chunk_RH, blocks, single)
    if repair is not None and count:
        _repair(call, logits[:count], input_LH, token_L, repair, sums)
    return grad_LH, sums


def _multiply(gradient_RS: Tensor, blocks: list[_Block], out_RH: Tensor) -> None:
    """Compute gradient weight into ``out_RH``."""
    for i, block in enumerate(blocks):
        if i:
            out_RH.addmm_(gradient_RS[:, block.columns], block.weight_BH)
        else:
            torch.mm(gradient_RS[:, block.columns], block.weight_BH, out=out_RH)


def _softmax(
    call: Call,
    logits_RC: Tensor,
    chunk_RH: Tensor,
    token_L: Tensor | None,
    start: int,
    per_token: _PerToken,
    repair: Tensor | None,
) -> None:
    """Overwrite a chunk's logits by their gradient; ``repair`` becomes 1 where a product needs it."""
    rows, classes = logits_RC.shape
    tensors = logits_RC, chunk_RH, token_L, *call.pointers, *per_token, repair
    fixed = row_stride(classes), chunk_RH.shape[1]
    tiled = classes if classes <= MAX_TILE_CLASSES else 0
    wanted = token_L is not None, call.gradients, repair is not None
    options = _softmax_options(call.flags, *wanted, tiled, logits_RC.element_size())
    if tiled:
        grid = (triton.cdiv(rows, options["ROWS"]), 1)
        launch(softmax_tile, grid, tensors, (start, rows, *call.scalars, classes), fixed, options)
    else:
        launch(softmax_row, (rows, 1), tensors, (start, *call.scalars, classes), fixed, options)


@cache
def _softmax_options(
    flags: Flags, packed: bool, gradients: bool, checks: bool, tiled: int, element_size: int
) -> dict[str, int]:
    """``tiled``: classes of a row where a program takes a tile of rows; 0 where it takes one row."""
    wanted = {"PACKED": packed, "GRADIENTS": gradients, "CHECK_INPUT": checks, "NUM_PARTIALS": NUM_PARTIALS}
    if not tiled:
        return {**flags._asdict(), **wanted, **row_options(element_size, flags.HAS_SOFTCAP)}
    tile = choose_tile(tiled)
    blocks = {"ROWS": tile.rows, "BLOCK": tile.block, "num_warps": tile.warps}
    return {**flags._asdict(), **wanted, **blocks}


@cache
def _repair_options(packed: bool) -> dict[str, int]:
    return {"PACKED": packed, **REPAIR}


class _Sums:
    """The head's gradients, summed over chunks in float32; a single chunk needs no sum."""

    def __init__(self, call: Call):
        self._options, self._like_CH = call.options, call.inputs.weight_CH
        self.weight_CH: Tensor | None = None
        self._padded_BH = self._like_CH
        self._bias_C: Tensor | None = None

    def add(self, g_RS: Tensor, chunk_RH: Tensor, blocks: list[_Block], single: bool) -> None:
        """Add a chunk, from its gradient of the logits."""
        like_CH = self._like_CH
        if self._options.grad_bias:
            part_C = g_RS[:, : len(like_CH)].sum(0, dtype=torch.float32)
            self._bias_C = part_C if self._bias_C is None else self._bias_C.add_(part_C)
        if not self._options.grad_weight:
            return
        first = self.weight_CH is None
        if self.weight_CH is None:
            # With the rows of zeros, so that every product has its place.
            rows = max((block.columns.stop for block in blocks), default=0)
            dtype = g_RS.dtype if single else torch.float32
            self._padded_BH = like_CH.new_empty((rows, like_CH.shape[1]), dtype=dtype)
            self.weight_CH = self._padded_BH[: len(like_CH)]
        for block in blocks:
            total, part = self._padded_BH[block.columns], g_RS[:, block.columns].T
            if single or (g_RS.is_cuda and g_RS.dtype != torch.float32 and first):
                kwargs = {} if single else {"out_dtype": torch.float32}
                torch.mm(part, chunk_RH, out=total, **kwargs)
            elif g_RS.is_cuda and g_RS.dtype != torch.float32:
                torch.addmm(total, part, chunk_RH, out_dtype=torch.float32, out=total)
            else:
                torch.addmm(total, part.float(), chunk_RH.float(), beta=0 if first else 1, out=total)

    def results(self) -> tuple[Tensor, Tensor]:
        """Return the gradients of weight and bias, empty where they are not wanted."""
        like_CH = self._like_CH
        grad_weight = grad_bias = like_CH.new_empty(0)
        if self._options.grad_weight:
            found = self.weight_CH
            grad_weight = torch.zeros_like(like_CH) if found is None else found.to(like_CH.dtype)
        if self._options.grad_bias:
            found = self._bias_C
            grad_bias = like_CH.new_zeros(len(like_CH)) if found is None else found.to(like_CH.dtype)
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
    """Compute grad_weight_CH = g' input again, over valid rows alone, where ``p_repair`` holds 1.

    An ignored row has a gradient of 0, which times an inf or a NaN is a NaN. It is rare: this is slower than
    cuBLAS, and costs a launch and 4 bytes per program where there is nothing to repair.
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
    rows, hidden = input_LH.shape
    launch(
        repair_grad_weight,
        (processors(gradient.device), 1),
        (repair, gradient, input_LH, token_L, call.inputs.target_T, sums.weight_CH),
        (rows, call.options.ignore_index),
        (gradient.stride(0), len(call.inputs.weight_CH), hidden),
        _repair_options(token_L is not None),
    )


def _valid_tokens(call: Call, count: int) -> Tensor:
    """Find the valid tokens, (count,), int64, then -1; no host waits for it."""
    mask_T = call.inputs.target_T != call.options.ignore_index
    return torch.nonzero_static(mask_T, size=count, fill_value=-1)[:, 0]


def _without_ignored(call: Call, chunk_RH: Tensor, token_L: Tensor | None, start: int) -> Tensor:
    """Zero the chunk's ignored rows: an inf or a NaN there times a gradient of 0 would be NaN."""
    stop = start + chunk_RH.shape[0]
    if token_L is None:
        valid_R = call.inputs.target_T[start:stop] != call.options.ignore_index
    else:
        valid_R = token_L[start:stop] >= 0
    return torch.where(valid_R[:, None], chunk_RH, 0.0)


def _unpacked(call: Call, grad_LH: Tensor | None, token_L: Tensor | None) -> Tensor:
    input_TH = call.inputs.input_TH
    if grad_LH is None:
        return input_TH.new_empty(0)
    if token_L is None:
        return grad_LH
    # One more row takes what belongs to no token.
    tokens, hidden = input_TH.shape
    grad_TH = input_TH.new_zeros(tokens + 1, hidden)
    token_L = torch.where(token_L < 0, tokens, token_L)
    return grad_TH.index_copy_(0, token_L, grad_LH)[:-1]
