"""A frozen linear layer with a low-rank adapter: y = x W' + s (x A') B'.

T tokens, K in, N out, R rank. The layer's weight has no gradient; x, A and B have.
Hu et al. 2021 (arXiv 2106.09685); s = alpha / R with alpha = 2 R.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.op import Contender, Inputs, Op, Shape, Work, function

SCALE = 2.0

SHAPES = (
    Shape("attention", {"T": 2048, "K": 256, "N": 256, "R": 8}, quick=True),
    Shape("attention", {"T": 4096, "K": 768, "N": 768, "R": 16}),
    Shape("feed-forward", {"T": 4096, "K": 256, "N": 1024, "R": 8}),
    Shape("attention", {"T": 8192, "K": 4096, "N": 4096, "R": 16}, "cuda", torch.bfloat16, quick=True),
    Shape("feed-forward", {"T": 8192, "K": 4096, "N": 11008, "R": 16}, "cuda", torch.bfloat16),
)


def inputs(shape: Shape, generator: torch.Generator) -> Inputs:
    tokens, inner, outer, rank = (shape[letter] for letter in "TKNR")

    def noise(*sizes: int, scale: float) -> Tensor:
        return (scale * torch.randn(*sizes, generator=generator, device=shape.device)).to(shape.dtype)

    return (
        noise(tokens, inner, scale=1.0).requires_grad_(),
        noise(outer, inner, scale=inner**-0.5),
        nn.Parameter(noise(rank, inner, scale=inner**-0.5)),
        nn.Parameter(noise(outer, rank, scale=rank**-0.5)),
    )


def eager(x_TK: Tensor, weight_NK: Tensor, a_RK: Tensor, b_NR: Tensor) -> Tensor:
    return F.linear(x_TK, weight_NK) + SCALE * F.linear(F.linear(x_TK, a_RK), b_NR)


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(eager, dynamic=False)


def compiled(shape: Shape, values: Inputs) -> Callable[[], Any]:
    return lambda: _compiled()(*values)


def peft(shape: Shape, values: Inputs) -> Callable[[], Any]:
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    x_TK, weight_NK, a_RK, b_NR = values
    base = nn.Linear(shape["K"], shape["N"], bias=False, device="meta")
    base.weight = nn.Parameter(weight_NK, requires_grad=False)
    config = LoraConfig(r=shape["R"], lora_alpha=int(SCALE * shape["R"]), lora_dropout=0.0)
    layer = Linear(base, "default", config=config, r=shape["R"], lora_alpha=config.lora_alpha)
    layer.lora_A["default"].weight, layer.lora_B["default"].weight = a_RK, b_NR
    return lambda: layer(x_TK)


def no_peft(shape: Shape) -> str | None:
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


def work(shape: Shape, which: str) -> Work:
    """One GEMM with W each way, the low-rank products, and x, W and the results moved once a pass."""
    tokens, inner, outer, rank = (shape[letter] for letter in "TKNR")
    element = torch.empty((), dtype=shape.dtype).element_size()
    big, low = 2.0 * tokens * inner * outer, 2.0 * tokens * rank * (inner + outer)
    moved = element * (tokens * (inner + outer) + inner * outer)
    passes = {"forward": (1, 1, 1), "backward": (1, 2, 1), "forward+backward": (2, 3, 2)}[which]
    return Work(bytes=passes[2] * moved, flops=passes[0] * big + passes[1] * low)


OP = Op(
    name="lora_linear",
    shapes=SHAPES,
    inputs=inputs,
    truth=eager,
    contenders=(
        Contender("eager", "baseline", function(eager)),
        Contender("torch.compile", "baseline", compiled, quick=False),
        Contender("PEFT", "peer", peft, no_peft),
        Contender("addmm", "peer", function(_Addmm.apply)),
    ),
    work=work,
    scaling={"R": (4, 8, 16, 32, 64)},
)
