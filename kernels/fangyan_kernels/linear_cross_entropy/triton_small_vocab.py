"""Linear cross-entropy over token tags on a GPU: a tile's logits never leave the chip.

Floor: the input read once, its gradient written once, 4 T H bytes in bfloat16, and 6 T H C operations.
On an H100 (3.0 TB/s, 800 TFLOP/s) the bytes take longer up to about 180 classes.

Where a program's registers hold the gradient of the weight, C <= 16 at H <= 1024 or C <= 32 at H <= 512 in
16 bits, H a multiple of 16, one kernel does all in one pass over the input: 4 T H bytes, and 8 P C H of
partial sums written and read for P programs, one per multiprocessor. Elsewhere a kernel computes the loss and
the gradients of logits and input, and a second one reads the input again for the gradient of the weight:
6 T H bytes.

These sums can outweigh the logits that are avoided: 12 bytes per logit at plain PyTorch's peak, in bfloat16
with a softmax in float32, are less than 4 P C H where T < P H / 3, 45,000 at H = 1024 on an H100. There they
are 3.8 MB at C = 7, and at most the registers that they come from, 64 KB per multiprocessor. Fewer programs
would have fewer bytes under way: at T = 2,048, C = 9, H = 768, the logits' 0.2 MB are the sums of 8, which by
bytes take 8 times as long as the 128 that there are.

Sums are taken in an order that the shape and the number of multiprocessors decide: results repeat on one
GPU, and are rounded otherwise on a GPU with another number of them.

Shape suffixes: T tokens, H hidden, C classes, P programs, S splits of the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fangyan_kernels.launching import launch
from fangyan_kernels.linear_cross_entropy.triton_shared import (
    PARTS,
    Call,
    Flags,
    launch_options,
    shared_memory,
)
from fangyan_kernels.linear_cross_entropy.triton_shared import processors as count_processors
from fangyan_kernels.linear_cross_entropy.triton_small_vocab_kernels import (
    finish,
    tag_logits,
    tag_rows,
    tag_weight,
)

# Beyond them the vocabulary's way is faster by the model. It moves the same 6 T H bytes by cuBLAS, and 6 to 8
# more per logit: 1% of the bytes at C = 32, H = 1024. Here the products take tiles of C padded to a power of
# two, on the older tensor-core instructions (half of Hopper's rate), and read W from the L2 cache twice
# per 64 tokens, as many bytes as x at C = 32 and twice that at 64. In float32 products run without tensor
# cores.
MAX_CLASSES = {2: 32, 4: 16}
SLICES = 8  # of H in the pass that reads the input once: one per warp
# Of tag_rows' loop: the targets are under way two tiles before the input's rows, those two before their use.
STAGES = 5
LOGITS_STAGES = {2: 4, 4: 2}
FINISH = {
    "BLOCK_P": 32,
    "BLOCK": 32,
    "num_warps": 4,
}  # a warp reads 128 bytes of a program's row; 224 programs at C = 7


@dataclass(frozen=True)
class Rows:
    """Tiles of the one pass: ``block_t`` tokens by H, as 8 slices of ``splits`` blocks of ``block_h``."""

    block_t: int
    block_h: int
    splits: int
    block_c: int

    @property
    def width(self) -> int:
        return SLICES * self.splits * self.block_h

    @property
    def shared(self) -> int:
        """Bytes: two tiles of input, the weight by rows and by columns, a block on its way out, sums."""
        return 2 * self.width * (2 * self.block_t + 2 * self.block_c + self.block_t // self.splits) + 1536


@dataclass(frozen=True)
class Blocks:
    """Tiles of the two passes: ``block_t`` tokens by ``block_h``, then ``weight_h``, of H at a time."""

    block_t: int
    block_h: int
    weight_h: int
    block_c: int


@cache
def choose_tiles(hidden: int, classes: int, element_size: int, shared: int) -> Rows | Blocks:
    """Tiles for a chip with ``shared`` bytes of shared memory per block."""
    block_c = max(16, triton.next_power_of_2(classes))
    # Float32 multiplies without tensor cores; Turing, of 64 KB, copies nothing asynchronously, nor does any
    # chip where rows begin at any address: what is under way there takes registers.
    unaligned = hidden % 16 != 0  # the divisor that Triton tells the compiler of
    if element_size == 4 or shared <= 64 << 10 or unaligned:
        return Blocks(block_t=32, block_h=16 if unaligned else 32, weight_h=32, block_c=block_c)
    # Blocks of 16 hold the fewest registers, at H = 1024 up to 250 of 255; wider ones, whose accesses touch
    # fewer lines of the cache, spill there and at 32 classes.
    block_h = 32 if block_c == 16 and 256 < hidden <= 768 else 16
    rows = Rows(16, block_h, triton.cdiv(hidden, SLICES * block_h), block_c)
    # 64 registers of a thread for the weight's gradient: more would spill.
    if rows.width * block_c <= 64 * 32 * SLICES and rows.shared <= shared:
        return rows
    return Blocks(block_t=64, block_h=64, weight_h=128, block_c=block_c)


class Wanted(NamedTuple):
    """Constants beside :class:`Flags`: the results that are written."""

    LOSS_T: bool
    GRAD_INPUT: bool
    GRAD_WEIGHT: bool
    GRAD_BIAS: bool


@dataclass(frozen=True)
class Grid:
    """How many programs a call's kernels have, and the float32 elements of their workspace.

    Attributes:
        programs: of the kernel that computes the loss.
        splits: that each hold a sum of the weight's gradient, in rows of ``width``.
    """

    programs: int
    splits: int
    width: int

    def workspace(self, classes: int, grad_weight: bool, grad_bias: bool) -> int:
        own = self.splits * self.width * classes if grad_weight else 0
        return own + self.programs * (classes * grad_bias + 4)


@cache
def choose_grid(tiles: Rows | Blocks, tokens: int, hidden: int, processors: int) -> Grid:
    tiles_T = max(1, triton.cdiv(tokens, tiles.block_t))
    if isinstance(tiles, Rows):
        programs = min(tiles_T, processors)
        return Grid(programs, programs, tiles.width)
    # Two programs per multiprocessor: what one stores, the other loads.
    blocks = triton.cdiv(hidden, tiles.weight_h)
    return Grid(min(tiles_T, 2 * processors), min(tiles_T, max(1, 2 * processors // blocks)), hidden)


def linear_cross_entropy(call: Call, max_valid: int | None) -> tuple[Tensor, ...]:
    """The operator's results, by two kernels, or three where the input is read twice."""
    input_TH, weight_CH, target_T = call.input_TH, call.weight_CH, call.target_T
    device, (tokens, hidden), classes = input_TH.device, input_TH.shape, weight_CH.shape[0]
    tiles = choose_tiles(hidden, classes, input_TH.element_size(), shared_memory(device))
    grid = choose_grid(tiles, tokens, hidden, count_processors(device))
    reduce = call.reduction != "none"
    loss = torch.empty(() if reduce else (tokens,), dtype=torch.float32, device=device)
    labelled, correct = target_T.new_empty(()), target_T.new_empty(())
    prediction_T = torch.empty_like(target_T) if call.predict else target_T.new_empty(0)
    grad_input = torch.empty_like(input_TH) if call.grad_input else input_TH.new_empty(0)
    grad_weight = torch.empty_like(weight_CH) if call.grad_weight else weight_CH.new_empty(0)
    grad_bias = weight_CH.new_empty(classes if call.grad_bias else 0)
    size = grid.workspace(classes, call.grad_weight, call.grad_bias)
    workspace = torch.empty(size, dtype=torch.float32, device=device)
    results = loss, prediction_T, grad_input
    wanted = Wanted(not reduce, call.grad_input, call.grad_weight, call.grad_bias)
    if isinstance(tiles, Rows):
        _one_pass(call, tiles, grid, results, workspace, wanted)
    else:
        _two_passes(call, tiles, grid, results, workspace, wanted)
    elements = classes * grid.width if call.grad_weight else 0
    launch(
        finish,
        (-(-elements // FINISH["BLOCK"]) + 1, 1),
        (workspace, call.parts, grad_weight, grad_bias, loss, labelled, correct),
        (grid.splits, grid.programs, call.numbers[0], tokens if max_valid is None else max_valid),
        (hidden, classes, grid.width),
        _finish_options(call.given, wanted),
    )
    return loss, labelled, correct, prediction_T, grad_input, grad_weight, grad_bias


def _one_pass(
    call: Call,
    tiles: Rows,
    grid: Grid,
    results: tuple[Tensor, ...],
    workspace: Tensor,
    wanted: Wanted,
) -> None:
    launch(
        tag_rows,
        (grid.programs, 1),
        (call.input_TH, call.weight_CH, *call.pointers, *results, workspace),
        (call.tokens, *call.numbers),
        (call.hidden, call.classes),
        _rows_options(tiles, call.flags, wanted),
    )


def _two_passes(
    call: Call,
    tiles: Blocks,
    grid: Grid,
    results: tuple[Tensor, ...],
    workspace: Tensor,
    wanted: Wanted,
) -> None:
    input_TH, tokens = call.input_TH, call.tokens
    # Of padded classes: rows of 32 or 64 bytes, which no sector of the memory is shared by.
    grad_logits = input_TH.new_empty((tokens, tiles.block_c) if call.grad_weight else 0)
    launch(
        tag_logits,
        (grid.programs, 1),
        (input_TH, call.weight_CH, *call.pointers, *results, grad_logits, workspace),
        (tokens, *call.numbers, grid.splits),
        (call.hidden, call.classes),
        _logits_options(tiles, call.flags, wanted, input_TH.element_size()),
    )
    if call.grad_weight:
        launch(
            tag_weight,
            (-(-call.hidden // tiles.weight_h), grid.splits),
            (input_TH, call.target_T, grad_logits, workspace),
            (tokens, call.ignore_index),
            (call.hidden, call.classes),
            _weight_options(tiles),
        )


# Made once: a launch finds its variant by the object.


@cache
def _rows_options(tiles: Rows, flags: Flags, wanted: Wanted) -> dict[str, int]:
    blocks = {"BLOCK_T": tiles.block_t, "SPLITS": tiles.splits, "SLICES": SLICES, "BLOCK_H": tiles.block_h}
    given = {**flags._asdict(), **wanted._asdict(), "PARTS": PARTS}
    return {**given, **blocks, "BLOCK_C": tiles.block_c, "STAGES": STAGES, **launch_options(SLICES)}


@cache
def _logits_options(tiles: Blocks, flags: Flags, wanted: Wanted, element_size: int) -> dict[str, int]:
    blocks = {"BLOCK_T": tiles.block_t, "BLOCK_H": tiles.block_h, "BLOCK_C": tiles.block_c}
    given = {**flags._asdict(), **wanted._asdict(), "PARTS": PARTS}
    return {**given, **blocks, **launch_options(4, LOGITS_STAGES[element_size])}


@cache
def _weight_options(tiles: Blocks) -> dict[str, int]:
    blocks = {"BLOCK_T": tiles.block_t, "BLOCK_H": tiles.weight_h, "BLOCK_C": tiles.block_c}
    return {**blocks, "STAGES": STAGES, **launch_options(4)}


@cache
def _finish_options(given: bool, wanted: Wanted) -> dict[str, int]:
    gradients = {"GRAD_WEIGHT": wanted.GRAD_WEIGHT, "GRAD_BIAS": wanted.GRAD_BIAS}
    return {"REDUCE": not wanted.LOSS_T, "GIVEN": given, **gradients, "PARTS": PARTS, **FINISH}
