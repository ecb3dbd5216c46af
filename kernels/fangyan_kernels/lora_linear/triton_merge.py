"""W + s B A of a 4-bit W in one pass on a GPU.

out_nk = code[byte] absmax + s sum_r b_nr a_rk, for a tile of rows and columns: 0.5 N K bytes are read (and
N K / 64 scales), 2 N K written in 16 bits, for 2 N K R operations. Dequantizing to float32, adding B A and
rounding in three passes moves 18 N K. Accumulation is in float32, rounded once.

The layout is bitsandbytes' (``csrc/kernels.cu``): elements follow one another along the rows, two per byte,
the first in its upper half; one scale per block of elements, whatever the rows. Where no tile's row ends
within a block, a row has one scale and its bytes are read 16 at a time, each once; any other matrix is read
element by element. Nested scales are decoded where they are used.

Prefixes inside kernels: p_ pointer, o_ offset, m_ mask.
Shape suffixes: K in, N out, R rank.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from fangyan_kernels.launching import launch
from fangyan_kernels.lora_linear.base_weights import BaseWeights
from fangyan_kernels.optional import import_bitsandbytes


@triton.jit
def scale_of(block, mask, p_absmax, p_offset, p_nested, p_nested_code, NESTED_BLOCK: tl.constexpr):
    """Load the largest absolute value of blocks of elements; nested, it is an 8-bit code itself."""
    absmax = tl.load(p_absmax + block, mask=mask, other=0)
    if p_nested is not None:
        scale = tl.load(p_nested + block // NESTED_BLOCK, mask=mask, other=0.0)
        absmax = tl.load(p_nested_code + absmax.to(tl.int32)) * scale + tl.load(p_offset)
    return absmax


@triton.jit(do_not_specialize=["scaling"])
def merge(
    p_bytes,
    p_absmax,
    p_offset,
    p_nested,
    p_nested_code,
    p_code,
    p_a,
    p_b,
    p_out,
    scaling: tl.float32,
    out_features,
    in_features,
    rank,
    QUANT_BLOCK: tl.constexpr,
    NESTED_BLOCK: tl.constexpr,
    WHOLE_ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Compute a tile of W + s B A, or of W without a and b.

    WHOLE_ROWS: K and QUANT_BLOCK are multiples of BLOCK_K.
    """
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    m_n, m_k = n < out_features, k < in_features
    m_tile = m_n[:, None] & m_k[None, :]
    o_row = n.to(tl.int64) * in_features
    o_tile = o_row[:, None] + k[None, :]
    if WHOLE_ROWS:
        o_first = o_row + tl.program_id(0) * BLOCK_K
        o_words = (o_first // 8)[:, None] + tl.arange(0, BLOCK_K // 8)[None, :]
        words = tl.load(p_bytes.to(tl.pointer_type(tl.int32)) + o_words, mask=m_n[:, None], other=0)
        e = tl.arange(0, 8)
        half = (words[:, :, None] >> (e ^ 1) * 4) & 15
        code = tl.load(p_code + tl.arange(0, 16))
        value = tl.gather(code, half.reshape(BLOCK_N * BLOCK_K), 0).reshape(BLOCK_N, BLOCK_K)
        block = o_first // QUANT_BLOCK
        scale = scale_of(block, m_n, p_absmax, p_offset, p_nested, p_nested_code, NESTED_BLOCK)[:, None]
    else:
        both = tl.load(p_bytes + o_tile // 2, mask=m_tile, other=0).to(tl.int32)
        value = tl.load(p_code + tl.where(o_tile % 2 == 0, both >> 4, both & 15))
        block = o_tile // QUANT_BLOCK
        scale = scale_of(block, m_tile, p_absmax, p_offset, p_nested, p_nested_code, NESTED_BLOCK)
    value *= scale
    if p_a is not None:
        adapter = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        for o_r in range(0, rank, BLOCK_R):
            r = o_r + tl.arange(0, BLOCK_R)
            m_r = r < rank
            b = tl.load(p_b + n[:, None] * rank + r[None, :], mask=m_n[:, None] & m_r[None, :], other=0.0)
            a = tl.load(
                p_a + r[:, None] * in_features + k[None, :], mask=m_r[:, None] & m_k[None, :], other=0.0
            )
            adapter = tl.dot(b, a, adapter, input_precision="ieee")
        value += scaling * adapter
    tl.store(p_out + o_tile, value, mask=m_tile)


def merged(weights: BaseWeights, i: int, a_RK: Tensor, b_NR: Tensor, scaling: float) -> Tensor:
    """Return W + s B A of 4-bit projection ``i``, (N, K), a new matrix."""
    return _launch(weights, i, a_RK.contiguous(), b_NR.contiguous(), scaling)


def dense(weights: BaseWeights, i: int) -> Tensor:
    """Return W of 4-bit projection ``i``, (N, K), a new matrix."""
    return _launch(weights, i, None, None, 0.0)


def _launch(weights: BaseWeights, i: int, a_RK: Tensor | None, b_NR: Tensor | None, scaling: float) -> Tensor:
    packed, (absmax, *nested), blocks = weights.stored(i)
    offset, nested_absmax, nested_code = nested or (None, None, None)
    out_features, in_features, rank = (
        weights.out_features[i],
        weights.in_features,
        0 if a_RK is None else len(a_RK),
    )
    out_NK = torch.empty((out_features, in_features), dtype=weights.dtype, device=packed.device)
    options = tiles(rank, in_features, *blocks)
    code = _code(weights.quant_type, packed.device)
    launch(
        merge,
        (-(-in_features // options["BLOCK_K"]), -(-out_features // options["BLOCK_N"])),
        (packed, absmax, offset, nested_absmax, nested_code, code, a_RK, b_NR, out_NK),
        (scaling,),
        (out_features, in_features, rank),
        options,
    )
    return out_NK


@functools.cache
def tiles(rank: int, in_features: int, block: int, nested_block: int = 0) -> dict[str, int]:
    """Choose tiles of 64 columns, the smallest quantization block; 32 elements per thread."""
    return {
        "QUANT_BLOCK": block,
        "NESTED_BLOCK": nested_block,
        "WHOLE_ROWS": in_features % 64 == 0 and block % 64 == 0,
        "BLOCK_N": 64,
        "BLOCK_K": 64,
        "BLOCK_R": min(64, max(16, 1 << max(rank - 1, 0).bit_length())),
        "num_warps": 4,
        "num_stages": 1,
    }


@functools.cache
def _code(quant_type: str, device: torch.device) -> Tensor:
    """Return the sixteen values of a 4-bit type."""
    code: Tensor = import_bitsandbytes("a 4-bit weight").functional.get_4bit_type(quant_type, device)
    return code
