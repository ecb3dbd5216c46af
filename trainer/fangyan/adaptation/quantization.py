"""Frozen weights in 4 bits: NF4 with nested scales (Dettmers et al. 2023, arXiv 2305.14314)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from fangyan_kernels.lora_linear.base_weights import dequantize as dequantize_weight
from torch import nn
from transformers.pytorch_utils import Conv1D

from fangyan.errors import UserError
from fangyan.models.structure import linear_layers


def quantize(model: Any, skip: Collection[str], dtype: torch.dtype) -> None:
    """Replace every linear layer but the output's by a 4-bit one, by type.

    Args:
        model: of transformers; changed in place.
        skip: modules that stay as they are, such as a new head.
        dtype: of the activations. Packed weights are stored as bytes, which no cast of the model touches.

    Raises:
        UserError: for transposed linear layers, which bitsandbytes does not pack.
    """
    import bitsandbytes as bnb

    if any(isinstance(module, Conv1D) for module in model.modules()):
        raise UserError(
            f"adaptation.quantization: nf4 packs nn.Linear, found Conv1D in {type(model).__name__}; "
            "expected null"
        )
    for name, module in linear_layers(model, skip).items():
        if type(module) is not nn.Linear:
            continue
        packed = bnb.nn.Linear4bit(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            compute_dtype=dtype,
            quant_type="nf4",
            quant_storage=torch.uint8,
            device="meta",
        )
        # As it is read from its file, one layer after another; scales are taken in float32.
        weight = bnb.nn.Params4bit(module.weight.data.float(), quant_type="nf4", quant_storage=torch.uint8)
        packed.weight = weight.to(module.weight.device)
        packed.weight.module = packed
        packed.bias = module.bias
        _replace(model, name, packed)
    model.is_loaded_in_4bit = True  # how PEFT knows


def dequantize(model: Any) -> None:
    """Replace every 4-bit layer by a plain one of the same values."""
    import bitsandbytes as bnb

    for name, module in list(model.named_modules()):
        if type(module) is bnb.nn.Linear4bit:
            plain = nn.Linear(module.in_features, module.out_features, device="meta")
            plain.weight = nn.Parameter(dequantize_weight(module.weight), requires_grad=False)
            plain.bias = module.bias
            _replace(model, name, plain)
    model.is_loaded_in_4bit = False


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)
