"""Linear cross-entropy over few classes on a GPU: a tile's logits never leave the chip.

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
    NUM_PARTIALS,
    REDUCE,
    Call,
    Flags,
    launch_options,
    reduce_options,
    reduce_partials,
    shared_memory,
)
from fangyan_kernels.linear_cross_entropy.triton_shared import processors as count_processors
from fangyan_kernels.linear_cross_entropy.triton_small_vocab_blocks import (
    small_vocab_logits,
    small_vocab_weight,
)
from fangyan_kernels.linear_cross_entropy.triton_small_vocab_rows import small_vocab_rows
from fangyan_kernels.ops.linear_cross_entropy import Results

# By bytes per element. For more classes the model favours the other kernels, which move the same 6 T H bytes
# by cuBLAS, and 6 to 8 more per logit: 1% of the bytes at C = 32, H = 1024. Here the products take tiles of C
# padded to a power of two, on the older tensor-core instructions (half of Hopper's rate), and read W from the
# L2 cache twice per 64 tokens, as many bytes as x at C = 32 and twice that at 64. In float32 they run without
# tensor cores.
MAX_CLASSES = {2: 32, 4: 16}
SLICES = 8  # of H in the pass that reads the input once: one per warp
# Of the loop in small_vocab_rows: targets are loaded two tiles before the input, which is two before its use.
STAGES = 5
LOGITS_STAGES = {2: 4, 4: 2}


@dataclass(frozen=True)
class Rows:
    """Tiles of the one pass: ``block_t`` tokens by H, as 8 slices of ``splits`` blocks of ``block_h``."""

    block_t: int
    block_h: int
    splits: int
    block_c: int

    @property
    def width(self) -> int:
        """Columns of all slices: H, padded."""
        return SLICES * self.splits * self.block_h

    @property
    def shared(self) -> int:
        """Bytes of shared memory: two tiles of input, the weight by rows and columns, an output block."""
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
    """Choose tiles for a chip with ``shared`` bytes of shared memory per block."""
    block_c = max(16, triton.next_power_of_2(classes))
    # Float32 multiplies without tensor cores; Turing, of 64 KB, copies nothing asynchronously, nor does any
    # chip where rows begin at any address: what is under way there takes registers.
    unaligned = hidden % 16 != 0  # the divisor that Triton tells the compiler of
    if element_size == 4 or shared <= 64 << 10 or unaligned:
        return Blocks(block_t=32, block_h=16 if unaligned else 32, weight_h=32, block_c=block_c)
    # The widest blocks that pad H least: their accesses touch fewer lines of the cache. On an H100, at
    # T = 65,536, H = 1024, C = 7: 186 us with blocks of 16, 160 of 32, 153 of 64. Of 128, and at 32 classes
    # those wider than 16, would spill.
    widths = (64, 32, 16) if block_c == 16 else (16,)
    block_h = min(widths, key=lambda width: triton.cdiv(hidden, SLICES * width) * width)
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
        """Count the workspace's elements: partial sums of the wanted gradients, four totals per program."""
        own = self.splits * self.width * classes if grad_weight else 0
        return own + self.programs * (classes * grad_bias + 4)


@cache
def choose_grid(tiles: Rows | Blocks, tokens: int, hidden: int, processors: int) -> Grid:
    """Choose the programs for a chip with so many multiprocessors."""
    tiles_T = max(1, triton.cdiv(tokens, tiles.block_t))
    if isinstance(tiles, Rows):
        programs = min(tiles_T, processors)
        return Grid(programs, programs, tiles.width)
    # Two programs per multiprocessor: what one stores, the other loads.
    blocks = triton.cdiv(hidden, tiles.weight_h)
    return Grid(min(tiles_T, 2 * processors), min(tiles_T, max(1, 2 * processors // blocks)), hidden)


def linear_cross_entropy(call: Call) -> tuple[Tensor, ...]:
    """Compute the operator's results by two kernels, or three where the input is read twice."""
    inputs, options = call.inputs, call.options
    device, (tokens, hidden, classes) = inputs.input_TH.device, call.shape
    tiles = choose_tiles(hidden, classes, inputs.input_TH.element_size(), shared_memory(device))
    grid = choose_grid(tiles, tokens, hidden, count_processors(device))
    reduces = options.reduction != "none"
    wanted = Wanted(not reduces, options.grad_input, options.grad_weight, options.grad_bias)
    results = _empty_results(call, reduces)
    size = grid.workspace(classes, options.grad_weight, options.grad_bias)
    workspace = torch.empty(size, dtype=torch.float32, device=device)
    if isinstance(tiles, Rows):
        _one_pass(call, tiles, grid, results, workspace, wanted)
    else:
        _two_passes(call, tiles, grid, results, workspace, wanted)
    elements = classes * grid.width if options.grad_weight else 0
    max_valid = tokens if options.max_valid is None else options.max_valid
    head = results.grad_weight_CH, results.grad_bias_C
    launch(
        reduce_partials,
        (-(-elements // REDUCE["BLOCK"]) + 1, 1),
        (workspace, call.partial_sums, *head, results.loss, results.num_valid, results.num_correct),
        (grid.splits, grid.programs, call.num_partials, max_valid),
        (hidden, classes, grid.width),
        reduce_options(reduces, call.has_divisor, wanted.GRAD_WEIGHT, wanted.GRAD_BIAS),
    )
    return results


def _empty_results(call: Call, reduces: bool) -> Results:
    (input_TH, weight_CH, _, target_T, *_), options = call.inputs, call.options
    tokens, _, classes = call.shape
    return Results(
        loss=torch.empty(() if reduces else (tokens,), dtype=torch.float32, device=input_TH.device),
        num_valid=target_T.new_empty(()),
        num_correct=target_T.new_empty(()),
        prediction_T=torch.empty_like(target_T) if options.predict else target_T.new_empty(0),
        grad_input_TH=torch.empty_like(input_TH) if options.grad_input else input_TH.new_empty(0),
        grad_weight_CH=torch.empty_like(weight_CH) if options.grad_weight else weight_CH.new_empty(0),
        grad_bias_C=weight_CH.new_empty(classes if options.grad_bias else 0),
    )


def _one_pass(
    call: Call, tiles: Rows, grid: Grid, results: Results, workspace: Tensor, wanted: Wanted
) -> None:
    inputs, (tokens, hidden, classes) = call.inputs, call.shape
    outputs = results.loss, results.prediction_T, results.grad_input_TH, workspace
    launch(
        small_vocab_rows,
        (grid.programs, 1),
        (inputs.input_TH, inputs.weight_CH, *call.pointers, *outputs),
        (tokens, *call.scalars),
        (hidden, classes),
        _rows_options(tiles, call.flags, wanted),
    )


def _two_passes(
    call: Call, tiles: Blocks, grid: Grid, results: Results, workspace: Tensor, wanted: Wanted
) -> None:
    inputs, (tokens, hidden, classes) = call.inputs, call.shape
    input_TH, grad_weight = inputs.input_TH, call.options.grad_weight
    # Of padded classes: rows of 32 or 64 bytes, so that no two rows share a sector of the memory.
    grad_logits = input_TH.new_empty((tokens, tiles.block_c) if grad_weight else 0)
    outputs = results.loss, results.prediction_T, results.grad_input_TH, grad_logits, workspace
    launch(
        small_vocab_logits,
        (grid.programs, 1),
        (input_TH, inputs.weight_CH, *call.pointers, *outputs),
        (tokens, *call.scalars, grid.splits),
        (hidden, classes),
        _logits_options(tiles, call.flags, wanted, input_TH.element_size()),
    )
    if grad_weight:
        launch(
            small_vocab_weight,
            (-(-hidden // tiles.weight_h), grid.splits),
            (input_TH, inputs.target_T, grad_logits, workspace),
            (tokens, call.options.ignore_index),
            (hidden, classes),
            _weight_options(tiles),
        )


# Made once: a launch finds its variant by the object.


@cache
def _rows_options(tiles: Rows, flags: Flags, wanted: Wanted) -> dict[str, int]:
    blocks = {"BLOCK_T": tiles.block_t, "SPLITS": tiles.splits, "SLICES": SLICES, "BLOCK_H": tiles.block_h}
    given = {**flags._asdict(), **wanted._asdict(), "NUM_PARTIALS": NUM_PARTIALS}
    return {**given, **blocks, "BLOCK_C": tiles.block_c, "STAGES": STAGES, **launch_options(SLICES)}


@cache
def _logits_options(tiles: Blocks, flags: Flags, wanted: Wanted, element_size: int) -> dict[str, int]:
    blocks = {"BLOCK_T": tiles.block_t, "BLOCK_H": tiles.block_h, "BLOCK_C": tiles.block_c}
    given = {**flags._asdict(), **wanted._asdict(), "NUM_PARTIALS": NUM_PARTIALS}
    return {**given, **blocks, **launch_options(4, LOGITS_STAGES[element_size])}


@cache
def _weight_options(tiles: Blocks) -> dict[str, int]:
    blocks = {"BLOCK_T": tiles.block_t, "BLOCK_H": tiles.weight_h, "BLOCK_C": tiles.block_c}
    return {**blocks, "STAGES": STAGES, **launch_options(4)}
