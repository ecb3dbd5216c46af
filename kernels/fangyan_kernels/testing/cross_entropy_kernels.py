"""The Triton kernels of ``linear_cross_entropy`` as a plain training step compiles them."""

from __future__ import annotations

from typing import Any

from fangyan_kernels.linear_cross_entropy import triton_small_vocab, triton_softmax, triton_softmax_rows
from fangyan_kernels.linear_cross_entropy.triton_shared import NUM_PARTIALS, launch_options
from fangyan_kernels.linear_cross_entropy.triton_small_vocab_blocks import (
    small_vocab_logits,
    small_vocab_weight,
)
from fangyan_kernels.linear_cross_entropy.triton_small_vocab_rows import small_vocab_rows
from fangyan_kernels.testing.offline import OfflineKernel

FLAGS = {
    "HAS_BIAS": True,
    "HAS_CLASS_WEIGHT": False,
    "HAS_TOKEN_WEIGHT": False,
    "HAS_DIVISOR": False,
    "HAS_SMOOTHING": False,
    "HAS_LOGIT_SCALE": False,
    "HAS_SOFTCAP": False,
    "PREDICT": False,
    "NUM_PARTIALS": NUM_PARTIALS,
}


def small_vocab_kernels(
    hidden: int, classes: int, element_size: int, shared: int, options: dict[str, bool] | None = None
) -> tuple[OfflineKernel, ...]:
    """Return the kernels for few classes, with every gradient.

    Args:
        hidden: size of the hidden states.
        classes: number of classes.
        element_size: bytes of an element of input and weight.
        shared: bytes of shared memory that a block of the chip can have.
        options: flags that differ from :data:`FLAGS`.
    """
    tiles = triton_small_vocab.choose_tiles(hidden, classes, element_size, shared)
    constants: dict[str, Any] = FLAGS | {"LOSS_T": False, "BLOCK_T": tiles.block_t, "BLOCK_H": tiles.block_h}
    constants |= {"BLOCK_C": tiles.block_c, "GRAD_INPUT": True, "GRAD_WEIGHT": True, "GRAD_BIAS": True}
    constants |= options or {}
    name = f"H{hidden}-C{classes}"
    aligned = hidden % 16 == 0
    stages = {"STAGES": triton_small_vocab.STAGES}
    if isinstance(tiles, triton_small_vocab.Rows):
        constants |= {"SPLITS": tiles.splits, "SLICES": triton_small_vocab.SLICES, **stages}
        warps = launch_options(triton_small_vocab.SLICES)
        return (_offline(f"small-vocab-{name}", small_vocab_rows, constants, warps, element_size, aligned),)
    weight = {"BLOCK_T": tiles.block_t, "BLOCK_H": tiles.weight_h, "BLOCK_C": tiles.block_c, **stages}
    launch = launch_options(4, triton_small_vocab.LOGITS_STAGES[element_size])
    return (
        _offline(f"small-vocab-logits-{name}", small_vocab_logits, constants, launch, element_size, aligned),
        _offline(
            f"small-vocab-weight-{name}", small_vocab_weight, weight, launch_options(4), element_size, aligned
        ),
    )


def large_vocab_kernel(classes: int, element_size: int = 2, softcap: bool = False) -> OfflineKernel:
    """Return the softmax kernel for so many classes: one row per program, or several."""
    constants: dict[str, Any] = FLAGS | {"HAS_SOFTCAP": softcap}
    constants |= {"PACKED": True, "GRADIENTS": True, "CHECK_INPUT": True}
    if classes > triton_softmax.MAX_TILE_CLASSES:
        kernel = triton_softmax_rows.softmax_row
        options = triton_softmax_rows.row_options(element_size, softcap)
        constants |= {name: options.pop(name) for name in ("GROUPS", "WIDTH")}
    else:
        kernel, tile = triton_softmax.softmax_tile, triton_softmax.choose_tile(classes)
        constants |= {"ROWS": tile.rows, "BLOCK": tile.block}
        options = {"num_warps": tile.warps}
    return _offline(f"large-vocab-C{classes}", kernel, constants, options, element_size)


def _offline(
    name: str,
    kernel: Any,
    constants: dict[str, Any],
    options: dict[str, int],
    element_size: int,
    aligned: bool = True,
) -> OfflineKernel:
    """Give every argument its type, which is the same in all kernels of this op.

    ``aligned`` is whether the hidden size is a multiple of 16, which Triton tells the compiler.
    """
    element = "*bf16" if element_size == 2 else "*fp32"
    elements = ("p_input", "p_weight", "p_bias", "p_logits", "p_grad_input", "p_grad_logits")
    kinds = dict.fromkeys(elements, element)
    integers = (
        "tokens",
        "hidden",
        "classes",
        "num_partials",
        "splits",
        "start",
        "ignore_index",
        "rows",
        "stride",
    )
    kinds |= dict.fromkeys(integers, "i32") | {"p_repair": "*i32"}
    kinds |= dict.fromkeys(("smoothing", "z_loss", "logit_scale", "softcap"), "fp32")
    kinds |= {"p_target": "*i64", "p_prediction": "*i64", "p_counts": "*i32", "p_correct": "*i8"}
    kinds["p_token"] = "*i64" if "PACKED" in constants else "*i32"
    signature = {
        argument: kinds.get(argument, "*fp32") for argument in kernel.arg_names if argument not in constants
    }
    strides = ("hidden", "stride") if aligned else ("stride",)
    multiples = tuple(argument for argument in signature if argument in strides)
    return OfflineKernel(name, kernel, signature, constants, multiples, options)


KERNELS = (
    *small_vocab_kernels(1024, 9, 2, 227 << 10),
    *small_vocab_kernels(768, 9, 2, 227 << 10),
    *small_vocab_kernels(512, 32, 2, 227 << 10),
    *small_vocab_kernels(1024, 32, 2, 227 << 10),
    *map(large_vocab_kernel, (188, 1000, 21128)),
)
