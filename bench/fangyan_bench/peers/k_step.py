"""A LoRA linear whose low-rank term is one more K step of the large product, for Hopper.

y = [x | s x A'] [W | B]', and backward dX = [g | s g B] [W' | A']': K-augmentation that copies nothing. A
persistent kernel walks over tiles of 128 x 256; its producer warp fills four stages of 128 x 64 and 256 x 64
elements by TMA, from x and W, and for the last step of a tile from the low-rank factors. Two warpgroups of
64 rows each multiply what is there by wgmma m64n256k16, whichever memory it came from.

A step is 2 x 4 wgmmas of 128 cycles. The last is 2 x 1 for R <= 16 (TMA fills up with zeros): 256 cycles more
than the 65,536 of a tile at K = 4096, 0.4%, where adding to a finished y would read and write it once more.
What remains are the passes over x and g that make the low-rank factors and the adapter's gradients.

The warpgroups share stages but no barrier: the one ahead writes its results out while the other computes.
Accumulation is in float32. It is Gluon because plain Triton pipelines the loads of one loop alone: its extra
step would wait for memory in every tile. Dropout of the input is out of reach: dX would need its mask on the
low-rank term, not on the sum.

Shape suffixes: T tokens, K in, N out, R rank; of a product, M rows, N columns, K terms. In kernels: p_ shared
memory, i_ index, o_ offset.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

# Of a tile's rows each warpgroup has one half; its accumulators are 128 of a thread's 240 registers.
BLOCK_M, BLOCK_N, BLOCK_K = gl.constexpr(128), gl.constexpr(256), gl.constexpr(64)
HALF_M, HALF_N = gl.constexpr(64), gl.constexpr(128)
# 4 x 48 KB, and 2 x 16 KB for results: 224 of a block's 227 KB.
STAGES = gl.constexpr(4)
# Rows of tiles that are computed side by side: they share columns of the right operand in the L2 cache.
GROUP = gl.constexpr(8)
# Of all operands: 16-bit elements in rows of at least 128 bytes.
LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
# Of two computing warpgroups and the producer's, whose registers go to them: 3 x 168 = 2 x 240 + 24.
LAUNCH = {"num_warps": 4, "maxnreg": 168}


@gluon.jit
def place(i_tile, out):
    """Return the first row and column of a tile."""
    tiles_m, tiles_n = gl.cdiv(out.shape[0], BLOCK_M), gl.cdiv(out.shape[1], BLOCK_N)
    first = i_tile // (GROUP * tiles_n) * GROUP
    height = min(tiles_m - first, GROUP)
    i_m = first + i_tile % (GROUP * tiles_n) % height
    return i_m * BLOCK_M, i_tile % (GROUP * tiles_n) // height * BLOCK_N


@gluon.jit
def fetch(step, left, right, o_m, o_n, o_k, buffers, barriers, TRANSPOSED: gl.constexpr):
    """Fill a stage once both warpgroups have finished with what it held."""
    p_left, p_right, _ = buffers
    empty, full = barriers
    i = step % STAGES
    mbarrier.wait(empty.index(i), step // STAGES & 1 ^ 1)
    mbarrier.expect(full.index(i), 2 * left.block_type.nbytes + right.block_type.nbytes)
    tma.async_copy_global_to_shared(left, [o_m, o_k], full.index(i), p_left.index(2 * i))
    tma.async_copy_global_to_shared(left, [o_m + HALF_M, o_k], full.index(i), p_left.index(2 * i + 1))
    if TRANSPOSED:
        tma.async_copy_global_to_shared(right, [o_n, o_k], full.index(i), p_right.index(i))
    else:
        tma.async_copy_global_to_shared(right, [o_k, o_n], full.index(i), p_right.index(i))
    return step + 1


@gluon.jit
def produce(left, right, low, tail, out, buffers, barriers, TRANSPOSED: gl.constexpr):
    """One warp: fill the stages of all tiles, as far ahead as there is room."""
    step, tiles = 0, gl.cdiv(out.shape[0], BLOCK_M) * gl.cdiv(out.shape[1], BLOCK_N)
    for i_tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        o_m, o_n = place(i_tile, out)
        for o_k in range(0, left.shape[1], BLOCK_K):
            step = fetch(step, left, right, o_m, o_n, o_k, buffers, barriers, TRANSPOSED)
        for o_r in range(0, low.shape[1], BLOCK_K):
            step = fetch(step, low, tail, o_m, o_n, o_r, buffers, barriers, TRANSPOSED)


@gluon.jit
def accumulate(total, step, first, i_half, buffers, barriers, TRANSPOSED: gl.constexpr, TERMS: gl.constexpr):
    """Add the product of a stage's first terms, and return the stage before it."""
    p_left, p_right, _ = buffers
    empty, full = barriers
    i = step % STAGES
    mbarrier.wait(full.index(i), step // STAGES & 1)
    left = p_left.index(2 * i + i_half).slice(0, TERMS, 1)
    if TRANSPOSED:
        right = p_right.index(i).slice(0, TERMS, 1).permute((1, 0))
    else:
        right = p_right.index(i).slice(0, TERMS, 0)
    total = warpgroup_mma(left, right, total, is_async=True)
    # With one product under way the one before is done; a tile's last is waited for at its end.
    total = warpgroup_mma_wait(1, (total,))
    mbarrier.arrive(empty.index((step + STAGES - 1) % STAGES), pred=step > first)
    return total, step + 1


@gluon.jit
def consume(i_half, inner, rank, out, buffers, barriers, TRANSPOSED: gl.constexpr, BLOCK_R: gl.constexpr):
    """One warpgroup: compute its half of the rows of all tiles; write them in two halves of columns."""
    FRAGMENT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    p_out, empty = buffers[2].index(i_half), barriers[0]
    step, tiles = 0, gl.cdiv(out.shape[0], BLOCK_M) * gl.cdiv(out.shape[1], BLOCK_N)
    for i_tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        o_m, o_n = place(i_tile, out)
        first, total = step, gl.zeros((HALF_M, BLOCK_N), gl.float32, FRAGMENT)
        for _ in range(0, inner, BLOCK_K):
            total, step = accumulate(total, step, first, i_half, buffers, barriers, TRANSPOSED, BLOCK_K)
        for _ in range(0, rank, BLOCK_K):
            total, step = accumulate(total, step, first, i_half, buffers, barriers, TRANSPOSED, BLOCK_R)
        total = warpgroup_mma_wait(0, (total,))
        mbarrier.arrive(empty.index((step + STAGES - 1) % STAGES))
        halves = gl.split(gl.permute(gl.reshape(total, (HALF_M, 2, HALF_N)), (0, 2, 1)))
        for i in gl.static_range(2):
            tma.store_wait(0)  # until the store before has read the buffer
            p_out.store(halves[i].to(out.dtype))
            fence_async_shared()
            tma.async_copy_shared_to_global(out, [o_m + i_half * HALF_M, o_n + i * HALF_N], p_out)
    tma.store_wait(0)


@gluon.jit
def product(left, right, low, tail, out, TRANSPOSED: gl.constexpr, BLOCK_R: gl.constexpr):
    """Compute out = left right + low tail, all of them TMA descriptors.

    TRANSPOSED: right and tail are stored with a row per column of ``out``, as a linear layer's weight is.
    """
    p_left = gl.allocate_shared_memory(left.dtype, [2 * STAGES, HALF_M, BLOCK_K], left.layout)
    p_right = gl.allocate_shared_memory(right.dtype, [STAGES] + right.block_type.shape, right.layout)  # noqa: RUF005
    p_out = gl.allocate_shared_memory(out.dtype, [2, HALF_M, HALF_N], out.layout)
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(empty.index(i), count=2)
        mbarrier.init(full.index(i), count=1)
    buffers, barriers = (p_left, p_right, p_out), (empty, full)
    inner, rank = left.shape[1], low.shape[1]
    gl.warp_specialize(
        [
            (consume, (0, inner, rank, out, buffers, barriers, TRANSPOSED, BLOCK_R)),
            (consume, (1, inner, rank, out, buffers, barriers, TRANSPOSED, BLOCK_R)),
            (produce, (left, right, low, tail, out, buffers, barriers, TRANSPOSED)),
        ],
        worker_num_warps=[4, 1],
        worker_num_regs=[240, 24],
    )


def missing(device: str) -> str | None:
    """Return why the kernel cannot run there, or None."""
    if device == "cuda" and torch.cuda.get_device_capability()[0] == 9:
        return None
    return "its kernel is made of Hopper's wgmma and TMA"


def multiply(left_MK: Tensor, right: Tensor, low_MR: Tensor, tail: Tensor, transposed: bool) -> Tensor:
    """Return left (M, K) @ right + low (M, R) @ tail, a new (M, N).

    ``right`` is (K, N) and ``tail`` (R, N), or (N, K) and (N, R) if ``transposed``. All are of one 16-bit
    dtype and have rows of whole 16 bytes, as TMA wants them.
    """
    rows, rank = low_MR.shape
    columns = right.shape[0 if transposed else 1]
    out_MN = left_MK.new_empty((rows, columns))
    block = (BLOCK_N.value, BLOCK_K.value) if transposed else (BLOCK_K.value, BLOCK_N.value)
    half = (HALF_M.value, BLOCK_K.value)
    operands = (
        (left_MK, half),
        (right, block),
        (low_MR, half),
        (tail, block),
        (out_MN, (HALF_M.value, HALF_N.value)),
    )
    descriptors = [TensorDescriptor.from_tensor(each, list(size), LAYOUT) for each, size in operands]
    tiles = triton.cdiv(rows, BLOCK_M.value) * triton.cdiv(columns, BLOCK_N.value)
    programs = min(tiles, _multiprocessors(left_MK.device))
    block_r = max(16, min(BLOCK_K.value, triton.next_power_of_2(rank)))
    product[(programs,)](*descriptors, TRANSPOSED=transposed, BLOCK_R=block_r, **LAUNCH)
    return out_MN


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


class KStep(torch.autograd.Function):
    """y = x W' + scaling x A' B', W frozen."""

    @staticmethod
    def forward(
        ctx: Any, x_TK: Tensor, weight_NK: Tensor, a_RK: Tensor, b_NR: Tensor, scaling: float
    ) -> Tensor:
        """Compute y, (T, N)."""
        low_TR = _scaled_product(x_TK, a_RK.T, scaling)
        ctx.save_for_backward(x_TK, weight_NK, a_RK, b_NR, low_TR)
        ctx.scaling = scaling
        return multiply(x_TK, weight_NK, low_TR, b_NR, transposed=True)

    @staticmethod
    def backward(ctx: Any, grad_TN: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of x, A and B."""
        x_TK, weight_NK, a_RK, b_NR, low_TR = ctx.saved_tensors
        grad_TN = grad_TN.contiguous()
        grad_low_TR = _scaled_product(grad_TN, b_NR, ctx.scaling)
        grad_x_TK = multiply(grad_TN, weight_NK, grad_low_TR, a_RK, transposed=False)
        return grad_x_TK, None, grad_low_TR.T @ x_TK, grad_TN.T @ low_TR, None


def _scaled_product(left: Tensor, right: Tensor, scaling: float) -> Tensor:
    """Return scaling * (left @ right), rounded once."""
    out = left.new_empty((len(left), right.shape[1]))
    return out.addmm_(left, right, beta=0, alpha=scaling)
