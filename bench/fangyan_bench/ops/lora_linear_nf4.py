"""A frozen 4-bit linear layer with a low-rank adapter: y = x W' + s (D * x) A' B', W stored as NF4.

T tokens, K in, N out, R rank, P percent of dropout. Dettmers et al. 2023 (arXiv 2305.14314), the scales
nested as in QLoRA. It is compared with the same layer with its weight in the dtype of x.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from fangyan_kernels.lora_linear.base_weights import dequantize
from torch import Tensor

from fangyan_bench.harness.op import Cost, Implementation, Inputs, Op, Shape
from fangyan_bench.ops.lora_linear import adapted, no_peft, ours, peft_layer
from fangyan_bench.ops.lora_linear import cost as plain_cost
from fangyan_bench.ops.lora_linear import inputs as plain_inputs

SHAPES = (
    Shape("attention", {"T": 2048, "K": 256, "N": 256, "R": 8, "P": 0}, quick=True),
    Shape("attention", {"T": 4096, "K": 768, "N": 768, "R": 16, "P": 0}),
    Shape("attention", {"T": 4096, "K": 768, "N": 768, "R": 16, "P": 10}),
    *(
        Shape("attention", {"T": 8192, "K": k, "N": k, "R": 16, "P": p}, "cuda", torch.bfloat16, quick)
        for k, p, quick in ((768, 0, False), (4096, 0, True), (4096, 10, False), (8192, 0, False))
    ),
)


def inputs(shape: Shape, generator: torch.Generator) -> Inputs:
    """Return the plain layer's inputs, its weight quantized."""
    x_TK, weight_NK, a_RK, b_NR = plain_inputs(shape, generator)
    settings = {"quant_type": "nf4", "compress_statistics": True, "requires_grad": False}
    return x_TK, Params4bit(weight_NK.cpu(), **settings).to(shape.device), a_RK, b_NR


def reference(x_TK: Tensor, weight: Any, a_RK: Tensor, b_NR: Tensor) -> Tensor:
    """Compute the layer with its weight dequantized."""
    return adapted(0.0, x_TK, dequantize(weight, torch.float32).to(x_TK.dtype), a_RK, b_NR)


def eager(shape: Shape, values: Inputs) -> Callable[[], Any]:
    """Prepare the layer as plain PyTorch writes it, dequantizing in every call."""
    x_TK, weight, a_RK, b_NR = values
    dropout = shape["P"] / 100
    return lambda: adapted(dropout, x_TK, dequantize_4bit(weight.data, weight.quant_state), a_RK, b_NR)


def frozen(_shape: Shape, values: Inputs) -> Callable[[], Any]:
    """Prepare bitsandbytes' layer without an adapter."""
    x_TK, weight, *_ = values
    return lambda: F.linear(x_TK, dequantize_4bit(weight.data, weight.quant_state))


def frozen_plain(_shape: Shape, values: Inputs) -> Callable[[], Any]:
    """Prepare the layer with its weight in the dtype of x, and no adapter."""
    x_TK, weight, *_ = values
    dense = dequantize(weight)
    return lambda: F.linear(x_TK, dense)


def ours_plain(shape: Shape, values: Inputs) -> Callable[[], Any]:
    """Prepare our op with the weight in the dtype of x, four times as large in bfloat16."""
    x_TK, weight, a_RK, b_NR = values
    return ours()(shape, (x_TK, dequantize(weight), a_RK, b_NR))


def peft(shape: Shape, values: Inputs) -> Callable[[], Any]:
    """Prepare PEFT's layer around bitsandbytes'."""
    from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit

    base = Linear4bit(shape["K"], shape["N"], bias=False, compute_dtype=shape.dtype, device="meta")
    base.weight = values[1]
    return peft_layer(PeftLinear4bit, base, shape, values)


def cost(shape: Shape, pass_name: str) -> Cost:
    """Count what the plain layer costs, with half a byte per element of its weight."""
    plain = plain_cost(shape, pass_name)
    reads = 2 if pass_name == "forward+backward" else 1
    saved = shape["N"] * shape["K"] * (torch.empty((), dtype=shape.dtype).element_size() - 0.5)
    return Cost(bytes=plain.bytes - reads * saved, flops=plain.flops)


OP = Op(
    name="lora_linear_nf4",
    module=__name__,
    shapes=SHAPES,
    inputs=inputs,
    reference=reference,
    implementations=(
        Implementation("eager", "baseline", eager),
        Implementation("frozen linear", "baseline", frozen, computes=False),
        Implementation("frozen linear, plain weight", "baseline", frozen_plain, computes=False, quick=False),
        Implementation("PEFT", "peer", peft, no_peft),
        Implementation("fangyan, plain weight", "ours", ours_plain),
        Implementation("fangyan", "ours", ours()),
    ),
    cost=cost,
    checked_at={"P": 0, "T": 2048},
)
