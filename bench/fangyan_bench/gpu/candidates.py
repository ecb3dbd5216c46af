"""Candidates of the tiles part: what else could be chosen of blocks, warps and stages, kernel by kernel.

A candidate replaces what a kernel's module chooses by, while it is called; all else is the kernels' own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from fangyan_kernels.linear_cross_entropy import triton_large_vocab as large_vocab
from fangyan_kernels.linear_cross_entropy import triton_small_vocab as small_vocab
from fangyan_kernels.linear_cross_entropy.triton_shared import Call, launch_options
from fangyan_kernels.linear_cross_entropy.triton_softmax import MAX_TILE_CLASSES, Tile
from fangyan_kernels.lora_linear import triton_launches as launches
from fangyan_kernels.lora_linear import triton_merge
from fangyan_kernels.lora_linear.base_weights import BaseWeights, unpack_quant_state
from fangyan_kernels.ops.linear_cross_entropy import Inputs, Options
from fangyan_kernels.ops.lora_linear import Layers
from fangyan_kernels.optional import import_bitsandbytes
from torch import Tensor

from fangyan_bench.gpu.decisions import CHOSEN

RANK = 16
Axes = dict[str, int]
Candidates = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Kernel:
    """A kernel, and what may be chosen for it.

    Attributes:
        name: of the entry.
        module: that chooses.
        make: makes inputs, and returns the call to time.
        candidates: by name, what replaces the module's attributes; nothing for the present choice.
    """

    name: str
    module: ModuleType
    make: Callable[[], Callable[[], object]]
    candidates: Candidates

    def choosing(self, candidate: str) -> AbstractContextManager[object]:
        """Have the module choose a candidate within a block."""
        changes = self.candidates[candidate]
        return patch.multiple(self.module, **changes) if changes else nullcontext()


def kernels(dry: bool) -> list[Kernel]:
    """Return every kernel with all its candidates; for a rehearsal at small sizes."""
    draw = _Draw("cpu" if dry else "cuda")
    tokens, hidden = (64, 64) if dry else (65536, 1024)
    return [
        *(_low_rank(draw, *((64, 128) if dry else (8192, 4096)), kernel) for kernel in LOW_RANK),
        _merge(draw, 128 if dry else 4096),
        *(_tags(draw, tokens, hidden, classes) for classes in (7, 32)),
        *(_softmax(draw, 2 if dry else rows, classes) for rows, classes in ((8192, 21128), (4096, 128256))),
        *(_softmax(draw, tokens, classes) for classes in (188, 2000)),
    ]


def few_candidates(kernel: Kernel) -> Kernel:
    """Return the kernel with its present choice, the first and the last of the others."""
    found = list(kernel.candidates.items())
    return replace(kernel, candidates=dict([*found[:2], found[-1]]))


def _grid(**axes: list[int]) -> Iterator[Axes]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _name(axes: Axes) -> str:
    return " ".join(f"{axis}={value}" for axis, value in axes.items())


def _always(value: Any) -> Callable[..., Any]:
    """Return a function of that value, the same object at every launch: a variant is found by it."""
    return lambda *_: value


@dataclass(frozen=True)
class _Draw:
    """Draws inputs in bfloat16."""

    device: str

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=torch.bfloat16)

    def head(self, tokens: int, hidden: int, classes: int, bias: bool) -> Call:
        """Draw a call of linear cross-entropy that wants all gradients."""
        target_T = torch.randint(classes, (tokens,), device=self.device)
        bias_C = self(classes) if bias else None
        inputs = Inputs(self(tokens, hidden), self(classes, hidden), bias_C, target_T, None, None, None)
        options = Options("sum", -100, 0.0, 0.0, 1.0, 0.0)
        return Call(inputs, options._replace(grad_input=True, grad_weight=True, grad_bias=bias), None)


_OUTER_PRODUCT = [
    *_grid(BLOCK_T=[32, 64], BLOCK_K=[128, 256], num_warps=[4, 8], num_stages=[3], PROGRAMS=[2, 4]),
    *_grid(BLOCK_T=[32], BLOCK_K=[128, 256], num_warps=[4], num_stages=[2, 4, 5], PROGRAMS=[2, 3]),
]
_EXPAND = [
    *_grid(BLOCK_T=[16, 32, 64], BLOCK_K=[128, 256], SPAN=[512, 1024, 4096], num_warps=[4]),
    *_grid(BLOCK_T=[32, 64], BLOCK_K=[256], SPAN=[1024, 4096], num_warps=[8]),
]
LOW_RANK = {
    "shrink": [
        *_grid(BLOCK_T=[16, 32, 64], BLOCK_K=[128, 256], num_warps=[4], num_stages=[3, 5]),
        *_grid(BLOCK_T=[16, 32], BLOCK_K=[64, 128], num_warps=[2], num_stages=[5]),
        *_grid(BLOCK_T=[64, 128], BLOCK_K=[64], num_warps=[4, 8], num_stages=[4, 6]),
    ],
    "outer_product with B": _OUTER_PRODUCT,
    "outer_product": _OUTER_PRODUCT,
    "expand": _EXPAND,
    "expand of sums": _EXPAND,
}


def _low_rank(draw: _Draw, tokens: int, columns: int, kernel: str) -> Kernel:
    found: dict[str, Mapping[str, Any]] = {CHOSEN: {}}
    chosen = launches.tiles(kernel.split()[0], RANK)
    for axes in LOW_RANK[kernel]:
        changes = {"_tiles": _always(chosen | {k: v for k, v in axes.items() if k in chosen})}
        found[_name(axes)] = changes | {k: v for k, v in axes.items() if k not in chosen}

    def make() -> Callable[[], object]:
        matrix_TK, low_TR = draw(tokens, columns), draw(tokens, RANK)
        a_RK, b_KR = draw(RANK, columns), draw(columns, RANK)
        strips = -(-columns // launches.tiles("outer_product", RANK)["BLOCK_K"])
        products_STR = draw(strips, tokens, RANK).float()
        calls: dict[str, Callable[[], object]] = {
            "shrink": partial(launches.launch_shrink, matrix_TK, a_RK, low_TR),
            "outer_product with B": partial(
                launches.launch_outer_product, matrix_TK, low_TR, b_KR=b_KR, factor=2.0
            ),
            "outer_product": partial(launches.launch_outer_product, matrix_TK, low_TR),
            "expand": partial(launches.launch_expand, low_TR, b_KR.T, matrix_TK, factor=2.0),
            "expand of sums": partial(launches.launch_expand, products_STR, a_RK, matrix_TK, total_TR=low_TR),
        }
        return calls[kernel]

    return Kernel(f"{kernel} T={tokens} K={columns} R={RANK}", launches, make, found)


def _merge(draw: _Draw, features: int) -> Kernel:
    found: dict[str, Mapping[str, Any]] = {CHOSEN: {}}
    chosen = triton_merge.tiles(RANK, features, 64, 256)
    for axes in _grid(BLOCK_N=[16, 32, 64, 128], num_warps=[2, 4, 8]):
        found[_name(axes)] = {"tiles": _always(chosen | axes)}

    def make() -> Callable[[], object]:
        quantize = import_bitsandbytes("a 4-bit weight").functional.quantize_4bit
        packed, state = quantize(draw(features, features), quant_type="nf4", compress_statistics=True)
        scales, blocks, kind = unpack_quant_state(SimpleNamespace(quant_state=state))
        a_RK, b_NR = draw(RANK, features), draw(features, RANK)
        layers = Layers(a_RK, [packed], [], [a_RK], [b_NR], [2.0], 0.0, None, scales, blocks, kind)
        return partial(triton_merge.merged, BaseWeights(layers), 0, a_RK, b_NR, 2.0)

    return Kernel(f"merge K={features} N={features} R={RANK}", triton_merge, make, found)


def _tags(draw: _Draw, tokens: int, hidden: int, classes: int) -> Kernel:
    block_c = max(16, 1 << (classes - 1).bit_length())
    found: dict[str, Mapping[str, Any]] = {CHOSEN: {}}
    one_pass = _grid(block_t=[16, 32], block_h=[16, 32, 64], STAGES=[3, 4, 5, 6])
    for axes in one_pass if block_c == 16 else ():
        if axes["block_t"] * axes["block_h"] < 2048:
            splits = -(-hidden // (small_vocab.SLICES * axes["block_h"]))
            rows = small_vocab.Rows(axes["block_t"], axes["block_h"], splits, block_c)
            found[f"rows {_name(axes)}"] = _tag_changes(rows, STAGES=axes["STAGES"])
    for axes in _grid(block_t=[32, 64, 128], block_h=[64, 128], weight_h=[128], stages=[3, 4], warps=[4, 8]):
        found[f"blocks {_name(axes)}"] = _tag_changes(
            small_vocab.Blocks(axes["block_t"], axes["block_h"], axes["weight_h"], block_c),
            LOGITS_STAGES=dict.fromkeys(small_vocab.LOGITS_STAGES, axes["stages"]),
            launch_options=_with_warps(axes["warps"]),
        )
    for axes in _grid(weight_h=[64, 256], STAGES=[3, 5]):
        tiles = small_vocab.Blocks(64, 64, axes["weight_h"], block_c)
        found[f"blocks {_name(axes)}"] = _tag_changes(tiles, STAGES=axes["STAGES"])

    def make() -> Callable[[], object]:
        return partial(small_vocab.linear_cross_entropy, draw.head(tokens, hidden, classes, bias=True))

    return Kernel(f"linear_cross_entropy T={tokens} C={classes} H={hidden}", small_vocab, make, found)


def _tag_changes(tiles: small_vocab.Rows | small_vocab.Blocks, **changes: Any) -> dict[str, Any]:
    """Return the changes with caches of their own: the module's hold options of its present choice."""
    names = "_rows_options", "_logits_options", "_weight_options"
    caches = {name: cache(getattr(small_vocab, name).__wrapped__) for name in names}
    return {"choose_tiles": _always(tiles), **caches, **changes}


def _with_warps(warps: int) -> Callable[..., dict[str, int]]:
    return lambda _, *others: launch_options(warps, *others)


def _softmax(draw: _Draw, tokens: int, classes: int) -> Kernel:
    found: dict[str, Mapping[str, Any]] = {CHOSEN: {}}
    if classes <= MAX_TILE_CLASSES:
        block = 1 << (classes - 1).bit_length()
        for axes in _grid(elements=[1024, 2048, 4096, 8192], warps=[1, 2, 4, 8]):
            rows, warps = axes["elements"] // block, axes["warps"]
            # None of one warp has two rows: Triton 3.6 gets their numbers wrong.
            if rows and axes["elements"] // (32 * warps) in (8, 16, 32) and (warps > 1 or rows == 1):
                found[f"rows={rows} warps={warps}"] = {"choose_tile": _always(Tile(rows, block, warps))}
    else:
        for axes in _grid(GROUPS=[1, 2, 4], WIDTH=[1024, 2048, 4096], num_warps=[4, 8, 16]):
            if axes["GROUPS"] * axes["WIDTH"] // (32 * axes["num_warps"]) in (8, 16, 32, 64):
                found[_name(axes)] = {"row_options": _always(axes)}
    options = large_vocab._softmax_options.__wrapped__
    found = {name: {**c, "_softmax_options": cache(options)} if c else c for name, c in found.items()}

    def make() -> Callable[[], object]:
        call = draw.head(tokens, 64, classes, bias=False)  # hidden: it reads neither input nor weight
        logits_TC = draw(tokens, large_vocab.row_stride(classes))[:, :classes]
        per_token = large_vocab._empty_per_token(call, packed=False)
        repair = torch.zeros((), dtype=torch.int32, device=draw.device)
        return partial(
            large_vocab._softmax, call, logits_TC, call.inputs.input_TH, None, 0, per_token, repair
        )

    return Kernel(f"softmax T={tokens} C={classes}", large_vocab, make, found)
