"""W + s B A of a 4-bit W in one pass on a GPU.

out_nk = code[byte] absmax + s sum_r b_nr a_rk, for a tile of rows and columns: 0.5 N K bytes are read (and
N K / 64 scales), 2 N K written in 16 bits, for 2 N K R operations. Dequantizing to float32, adding B A and
rounding in three passes moves 18 N K. Accumulation is in float32, rounded once.

Layout as bitsandbytes has it (``csrc/kernels.cu``): numbers follow one another along the rows, two to a byte,
the first in its upper half; a scale for every so many of them, whatever the rows.

Prefixes inside kernels: p_ pointer, m_ mask.
Shape suffixes: K in, N out, R rank.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from fangyan_kernels.lora_linear.frozen import Frozen


@triton.jit
def merge(
    p_bytes,
    p_absmax,
    p_code,
    p_a,
    p_b,
    p_out,
    outer,
    inner,
    rank,
    scaling,
    QUANT_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """A tile of W + s B A."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    m_n, m_k = n < outer, k < inner
    m_tile = m_n[:, None] & m_k[None, :]
    low = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for o_r in range(0, rank, BLOCK_R):
        r = o_r + tl.arange(0, BLOCK_R)
        m_r = r < rank
        b = tl.load(p_b + n[:, None] * rank + r[None, :], mask=m_n[:, None] & m_r[None, :], other=0.0)
        a = tl.load(p_a + r[:, None] * inner + k[None, :], mask=m_r[:, None] & m_k[None, :], other=0.0)
        low = tl.dot(b, a, low, input_precision=PRECISION)
    place = n.to(tl.int64)[:, None] * inner + k[None, :]
    both = tl.load(p_bytes + place // 2, mask=m_tile, other=0)
    half = tl.where(place % 2 == 0, both >> 4, both & 15)
    value = tl.load(p_code + half.to(tl.int32)) * tl.load(
        p_absmax + place // QUANT_BLOCK, mask=m_tile, other=0.0
    )
    tl.store(p_out + place, value + scaling * low, mask=m_tile)


def merged(frozen: Frozen, i: int, a_RK: Tensor, b_NR: Tensor, scaling: float) -> Tensor:
    """See :class:`fangyan_kernels.lora_linear.products.Tails`; of a 4-bit weight."""
    packed, absmax, block = frozen.packed(i)
    rank, inner = a_RK.shape
    outer = len(b_NR)
    out_NK = a_RK.new_empty(outer, inner)
    options = launch(rank)
    grid = (triton.cdiv(outer, options["BLOCK_N"]), triton.cdiv(inner, options["BLOCK_K"]))
    merge[grid](
        packed,
        absmax,
        _code(frozen.quant_type, packed.device),
        a_RK.contiguous(),
        b_NR.contiguous(),
        out_NK,
        *(outer, inner, rank, scaling),
        QUANT_BLOCK=block,
        PRECISION="ieee" if a_RK.dtype == torch.float32 else "tf32",
        **options,
    )
    return out_NK


def launch(rank: int) -> dict[str, int]:
    """Blocks, warps and stages of a rank: by analysis, none has been timed on a GPU."""
    block_r = min(64, max(16, triton.next_power_of_2(rank)))
    return {"BLOCK_N": 64, "BLOCK_K": 64, "BLOCK_R": block_r, "num_warps": 4, "num_stages": 2}


@functools.cache
def _code(quant_type: str, device: torch.device) -> Tensor:
    """The sixteen numbers of a 4-bit type."""
    from bitsandbytes.functional import get_4bit_type

    return get_4bit_type(quant_type, device)
