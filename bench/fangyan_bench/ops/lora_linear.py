"""A frozen linear layer with a low-rank adapter: y = x W' + s (D * x) A' B'.

T tokens, K in, N out, R rank, P percent of dropout. The layer's weight has no gradient; x, A and B have.
Hu et al. 2021 (arXiv 2106.09685); s = alpha / R with alpha = 2 R. Implementations drop different elements, so
that values are compared without dropout; the op's tests check what ours drops.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from fangyan_kernels import lora_linear
from fangyan_kernels.testing import lora_kernels
from torch import Tensor, nn

from fangyan_bench.harness.op import (
    Cost,
    ExpectedSpeedup,
    Implementation,
    Inputs,
    Op,
    Shape,
    compiled,
    function,
)

SCALE = 2.0

SHAPES = (
    Shape("attention", {"T": 2048, "K": 256, "N": 256, "R": 8, "P": 0}, quick=True),
    Shape("attention", {"T": 2048, "K": 256, "N": 256, "R": 8, "P": 10}, quick=True),
    Shape("attention", {"T": 4096, "K": 768, "N": 768, "R": 16, "P": 0}),
    Shape("attention", {"T": 4096, "K": 768, "N": 768, "R": 16, "P": 10}),
    Shape("feed-forward", {"T": 4096, "K": 256, "N": 1024, "R": 8, "P": 0}),
    Shape("feed-forward", {"T": 4096, "K": 256, "N": 1024, "R": 8, "P": 10}),
    *(
        Shape("attention", {"T": 8192, "K": k, "N": k, "R": r, "P": p}, "cuda", torch.bfloat16, quick)
        for k, r, p, quick in (
            *((k, r, 0, k == 4096 and r == 16) for k in (768, 4096, 8192) for r in (8, 16, 64)),
            (4096, 16, 10, True),
            (8192, 16, 10, False),
        )
    ),
)


def inputs(shape: Shape, generator: torch.Generator) -> Inputs:
    """Return x, the frozen weight, A and B."""
    tokens, in_features, out_features, rank = (shape[dim] for dim in "TKNR")

    def noise(*sizes: int, scale: float) -> Tensor:
        return (scale * torch.randn(*sizes, generator=generator, device=shape.device)).to(shape.dtype)

    return (
        noise(tokens, in_features, scale=1.0).requires_grad_(),
        noise(out_features, in_features, scale=in_features**-0.5),
        nn.Parameter(noise(rank, in_features, scale=in_features**-0.5)),
        nn.Parameter(noise(out_features, rank, scale=rank**-0.5)),
    )


def reference(x_TK: Tensor, weight_NK: Tensor, a_RK: Tensor, b_NR: Tensor) -> Tensor:
    """Compute the layer without dropout."""
    return F.linear(x_TK, weight_NK) + SCALE * F.linear(F.linear(x_TK, a_RK), b_NR)


def adapted(dropout: float, x_TK: Tensor, weight_NK: Tensor, a_RK: Tensor, b_NR: Tensor) -> Tensor:
    """Compute the layer as plain PyTorch writes it."""
    low_TR = F.linear(F.dropout(x_TK, dropout), a_RK)
    return F.linear(x_TK, weight_NK) + SCALE * F.linear(low_TR, b_NR)


def eager(shape: Shape, values: Inputs) -> Callable[[], Any]:
    """Prepare the layer as plain PyTorch writes it."""
    dropout = shape["P"] / 100
    return lambda: adapted(dropout, *values)


def frozen(_shape: Shape, values: Inputs) -> Callable[[], Any]:
    """Prepare the layer without an adapter, which bounds all others from below."""
    x_TK, weight_NK, *_ = values
    return lambda: F.linear(x_TK, weight_NK)


def ours(**options: Any) -> Callable[[Shape, Inputs], Callable[[], Any]]:
    """Return the ``prepare`` of our op under these options."""

    def prepare(shape: Shape, values: Inputs) -> Callable[[], Any]:
        dropout = shape["P"] / 100
        return lambda: lora_linear(*values, scaling=SCALE, dropout=dropout, **options)

    return prepare


_compiled = compiled(adapted)


def compiled_whole(shape: Shape, values: Inputs) -> Callable[[], Any]:
    """Prepare the layer under torch.compile."""
    dropout = shape["P"] / 100
    return lambda: _compiled(dropout, *values)


def peft(shape: Shape, values: Inputs) -> Callable[[], Any]:
    """Prepare PEFT's layer."""
    from peft.tuners.lora import Linear

    base = nn.Linear(shape["K"], shape["N"], bias=False, device="meta")
    base.weight = nn.Parameter(values[1], requires_grad=False)
    return peft_layer(Linear, base, shape, values)


def peft_layer(kind: Any, base: nn.Module, shape: Shape, values: Inputs) -> Callable[[], Any]:
    """Prepare one of PEFT's LoRA layers around a frozen one, with the inputs' adapter."""
    from peft import LoraConfig

    x_TK, _, a_RK, b_NR = values
    config = LoraConfig(r=shape["R"], lora_alpha=int(SCALE * shape["R"]), lora_dropout=shape["P"] / 100)
    layer = kind(base, "default", config=config, r=shape["R"], lora_alpha=config.lora_alpha)
    layer.lora_A["default"].weight, layer.lora_B["default"].weight = a_RK, b_NR
    return lambda: layer(x_TK)


def no_dropout(shape: Shape) -> str | None:
    """Return why an implementation without dropout cannot run, or None."""
    return "it has no dropout" if shape["P"] else None


def no_peft(_shape: Shape) -> str | None:
    """Return why PEFT is missing, or None."""
    return None if find_spec("peft") else "peft is not installed"


class _Addmm(torch.autograd.Function):
    """Autograd by hand, every product accumulated into its sum by ``addmm_``."""

    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, weight_NK: Tensor, a_RK: Tensor, b_NR: Tensor) -> Tensor:
        low_TR = x_TK @ a_RK.T
        ctx.save_for_backward(x_TK, weight_NK, a_RK, b_NR, low_TR)
        return (x_TK @ weight_NK.T).addmm_(low_TR, b_NR.T, alpha=SCALE)

    @staticmethod
    def backward(ctx: Any, grad_TN: Tensor) -> tuple[Tensor | None, ...]:
        x_TK, weight_NK, a_RK, b_NR, low_TR = ctx.saved_tensors
        grad_low_TR = SCALE * (grad_TN @ b_NR)
        grad_x_TK = (grad_TN @ weight_NK).addmm_(grad_low_TR, a_RK)
        return grad_x_TK, None, grad_low_TR.T @ x_TK, SCALE * (grad_TN.T @ low_TR)


class _Augmented(torch.autograd.Function):
    """[x | s x A'] [W | B]': one product of K + R terms forward; backward, one product is g [W | B]."""

    @staticmethod
    def forward(
        ctx: Any, x_TK: Tensor, a_RK: Tensor, b_NR: Tensor, input_TC: Tensor, weight_NC: Tensor
    ) -> Tensor:
        inner = x_TK.shape[1]
        torch.mm(x_TK, SCALE * a_RK.T, out=input_TC[:, inner:])
        weight_NC[:, inner:] = b_NR
        ctx.save_for_backward(a_RK)
        ctx.both = input_TC, weight_NC
        return input_TC @ weight_NC.T

    @staticmethod
    def backward(ctx: Any, grad_TN: Tensor) -> tuple[Tensor | None, ...]:
        (a_RK,), (input_TC, weight_NC) = ctx.saved_tensors, ctx.both
        inner = a_RK.shape[1]
        grad_TC = grad_TN @ weight_NC
        grad_low_TR = SCALE * grad_TC[:, inner:]
        grad_x_TK = torch.addmm(grad_TC[:, :inner], grad_low_TR, a_RK)
        grad_b_NR = grad_TN.T @ input_TC[:, inner:]
        return grad_x_TK, grad_low_TR.T @ input_TC[:, :inner], grad_b_NR, None, None


def augmented(_shape: Shape, values: Inputs) -> Callable[[], Any]:
    """Prepare K-augmentation, x and W in the wider matrices already, as if the layer before wrote x there."""
    x_TK, weight_NK, a_RK, b_NR = values
    with torch.no_grad():
        input_TC = torch.cat([x_TK, x_TK.new_empty(len(x_TK), len(a_RK))], 1)
        weight_NC = torch.cat([weight_NK, b_NR], 1)
    apply: Callable[..., Any] = _Augmented.apply
    return lambda: apply(x_TK, a_RK, b_NR, input_TC, weight_NC)


def k_step(_shape: Shape, values: Inputs) -> Callable[[], Any]:
    """Prepare the low-rank term as one more K step of the product."""
    from fangyan_bench.peers.k_step import KStep

    apply: Callable[..., Any] = KStep.apply
    return lambda: apply(*values, SCALE)


def no_k_step(shape: Shape) -> str | None:
    """Return why the K step cannot run, or None."""
    from fangyan_bench.peers.k_step import missing

    if shape["R"] % 8:
        return "TMA reads rows of whole 16 bytes"
    return no_dropout(shape) or missing(shape.device)


def cost(shape: Shape, pass_name: str) -> Cost:
    """Count one GEMM with W each way, the low-rank products, and x, W and the results moved once per pass."""
    tokens, in_features, out_features, rank = (shape[dim] for dim in "TKNR")
    element = torch.empty((), dtype=shape.dtype).element_size()
    dense = 2.0 * tokens * in_features * out_features
    low_rank = 2.0 * tokens * rank * (in_features + out_features)
    moved = element * (tokens * (in_features + out_features) + in_features * out_features)
    passes = {"forward": (1, 1, 1), "backward": (1, 2, 1), "forward+backward": (2, 3, 2)}[pass_name]
    return Cost(bytes=passes[2] * moved, flops=passes[0] * dense + passes[1] * low_rank)


OP = Op(
    name="lora_linear",
    module=__name__,
    shapes=SHAPES,
    inputs=inputs,
    reference=reference,
    implementations=(
        Implementation("eager", "baseline", eager),
        Implementation("torch.compile", "baseline", compiled_whole, quick=False, compiled=True),
        Implementation("frozen linear", "baseline", frozen, computes=False),
        Implementation("PEFT", "peer", peft, no_peft),
        Implementation("addmm", "peer", function(_Addmm.apply), no_dropout),
        Implementation("K-augmentation", "peer", augmented, no_dropout, quick=False),
        Implementation("K step", "peer", k_step, no_k_step, quick=False),
        Implementation("fangyan reference", "ours", ours(impl="reference"), quick=False),
        Implementation("fangyan", "ours", ours()),
    ),
    cost=cost,
    checked_at={"P": 0, "T": 2048},
    scaling={"R": (4, 8, 16, 32, 64)},
    expected_speedups=(
        ExpectedSpeedup("fangyan", "attention-T2048-K256-N256-R8-P0", "forward+backward", 1.0),
        ExpectedSpeedup("fangyan", "attention-T2048-K256-N256-R8-P10", "forward+backward", 1.1),
    ),
    counted=(("fangyan", Shape("attention", {"T": 128, "K": 64, "N": 96, "R": 8, "P": 10})),),
    kernels=lora_kernels.KERNELS,
)
