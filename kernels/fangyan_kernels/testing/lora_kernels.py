"""The Triton kernels of ``lora_linear`` as a layer of bfloat16 compiles them."""

from __future__ import annotations

from typing import Any

from fangyan_kernels.lora_linear import triton_launches, triton_low_rank, triton_merge
from fangyan_kernels.testing.offline import OfflineKernel

_KINDS = {
    **dict.fromkeys(("p_sums", "p_products", "p_sums_a", "p_sums_b", "p_offset", "p_nested"), "*fp32"),
    **dict.fromkeys(("p_nested_code", "p_code"), "*fp32"),
    **dict.fromkeys(("p_bytes", "p_absmax"), "*u8"),
    **dict.fromkeys(("factor", "scaling"), "fp32"),
    "p_seed": "*i64",
    "threshold": "u32",
}
_SIZES = (
    "in_features",
    "columns",
    "out_features",
    "rank",
    "stride_r",
    "stride_k",
    "stride_low",
    "stride_sum",
    "stride_a",
)


def _offline(
    name: str, kernel: Any, tiles: dict[str, int], absent: tuple[str, ...] = (), **known: Any
) -> OfflineKernel:
    """Describe a kernel of a layer whose sizes and ranks are multiples of 16.

    Args:
        name: in reports.
        kernel: the function.
        tiles: its constants and launch options.
        absent: pointers that are None.
        known: types of pointers that are not of bfloat16; values of integers that are 1.
    """
    options = {option: tiles[option] for option in ("num_warps", "num_stages")}
    ones = {argument: value for argument, value in known.items() if value == 1}
    constants = {**dict.fromkeys(absent), **ones, **tiles}
    kinds = {**_KINDS, **known}
    signature = {
        argument: kinds.get(argument, "*bf16" if argument.startswith("p_") else "i32")
        for argument in kernel.arg_names
        if argument not in constants
    }
    constants = {argument: constants[argument] for argument in kernel.arg_names if argument in constants}
    multiples = tuple(argument for argument in _SIZES if argument in signature)
    return OfflineKernel(name, kernel, signature, constants, multiples, options)


def low_rank_kernels(
    rank: int = 16, drops: bool = True, tensor_cores: bool = True
) -> dict[str, OfflineKernel]:
    """Return the low-rank kernels of a layer's forward and backward, by name."""
    shrink, expand, outer_product = (
        triton_launches.tiles(name, rank, tensor_cores) for name in ("shrink", "expand", "outer_product")
    )
    unused = () if drops else ("p_seed",)
    no_b, no_sum = ("p_b", "p_products"), ("p_sum", "p_bias", "p_seed")
    kernels = (
        _offline("lora-shrink", triton_low_rank.shrink, shrink, unused, stride_k=1),
        _offline("lora-expand-output", triton_low_rank.expand, expand, no_sum, stride_r=1),
        _offline(
            "lora-outer-gradient", triton_low_rank.outer_product, outer_product, ("p_seed",), stride_r=1
        ),
        _offline(
            "lora-expand", triton_low_rank.expand, expand, ("p_bias", *unused), stride_k=1, p_low="*fp32"
        ),
        _offline(
            "lora-outer",
            triton_low_rank.outer_product,
            outer_product,
            (*no_b, *unused),
            stride_k=1,
            stride_r=1,
        ),
        _offline("lora-reduce", triton_low_rank.reduce_partials, triton_launches.REDUCE),
    )
    return {kernel.name: kernel for kernel in kernels}


def merge_kernel(rank: int = 16) -> OfflineKernel:
    """Return the kernel that adds an adapter to a 4-bit weight of nested scales."""
    return _offline("lora-merge", triton_merge.merge, triton_merge.tiles(rank, 4096, 64, 256))


KERNELS = (*low_rank_kernels().values(), merge_kernel())
