"""A linear head with softmax cross-entropy: token tags, and vocabularies.

T tokens, H hidden, C classes. 15% of the targets are ignored, as special tokens and padding are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from fangyan_kernels import linear_cross_entropy
from torch import Tensor

from harness.op import Claim, Contender, Inputs, Op, Shape, Work, function

IGNORE = -100

SHAPES = (
    Shape("tags", {"T": 2048, "H": 256, "C": 185}, quick=True),
    Shape("tags", {"T": 2048, "H": 768, "C": 9}),
    Shape("vocabulary", {"T": 512, "H": 256, "C": 8287}, quick=True),
    Shape("vocabulary", {"T": 2048, "H": 256, "C": 21128}),
    Shape("tags", {"T": 65536, "H": 1024, "C": 9}, "cuda", torch.bfloat16, quick=True),
    Shape("tags", {"T": 65536, "H": 1024, "C": 185}, "cuda", torch.bfloat16),
    Shape("vocabulary", {"T": 8192, "H": 768, "C": 21128}, "cuda", torch.bfloat16, quick=True),
    Shape("vocabulary", {"T": 8192, "H": 4096, "C": 128256}, "cuda", torch.bfloat16),
)


def inputs(shape: Shape, generator: torch.Generator) -> Inputs:
    tokens, hidden, classes = shape["T"], shape["H"], shape["C"]

    def noise(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, device=shape.device)

    input_TH = noise(tokens, hidden).to(shape.dtype).requires_grad_()
    weight_CH = (noise(classes, hidden) / hidden**0.5).to(shape.dtype).requires_grad_()
    target_T = torch.randint(classes, (tokens,), generator=generator, device=shape.device)
    target_T[torch.rand(tokens, generator=generator, device=shape.device) < 0.15] = IGNORE
    return input_TH, weight_CH, target_T


def eager(input_TH: Tensor, weight_CH: Tensor, target_T: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(input_TH, weight_CH).float(), target_T)


def truth(input_TH: Tensor, weight_CH: Tensor, target_T: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(input_TH, weight_CH), target_T)


def compiled(shape: Shape, values: Inputs) -> Callable[[], Any]:
    return lambda: _compiled()(*values)


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(eager, dynamic=False)


def native(shape: Shape, values: Inputs) -> Callable[[], Any]:
    return lambda: F.linear_cross_entropy(*values)


def native_chunked(shape: Shape, values: Inputs) -> Callable[[], Any]:
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda: F.linear_cross_entropy(*values, options=options)


def no_native(shape: Shape) -> str | None:
    return (
        None if hasattr(F, "linear_cross_entropy") else f"torch {torch.__version__} has none, expected 2.13"
    )


def liger(shape: Shape, values: Inputs) -> Callable[[], Any]:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORE)
    input_TH, weight_CH, target_T = values
    return lambda: loss(weight_CH, input_TH, target_T)


def cut_cross_entropy(shape: Shape, values: Inputs) -> Callable[[], Any]:
    from cut_cross_entropy import linear_cross_entropy as cce

    # Its default filters small gradients out; the exact form computes what all others do.
    return lambda: cce(*values, impl="cce_exact")


def needs_gpu(package: str) -> Callable[[Shape], str | None]:
    def missing(shape: Shape) -> str | None:
        if shape.device != "cuda":
            return "its kernels need a CUDA GPU"
        return None if find_spec(package) else f"{package} is not installed"

    return missing


def ours(impl: Any) -> Callable[[Shape, Inputs], Callable[[], Any]]:
    return function(lambda *values: linear_cross_entropy(*values, impl=impl))


def cpu_only(shape: Shape) -> str | None:
    return None if shape.device == "cpu" else "a CPU kernel"


def work(shape: Shape, which: str) -> Work:
    """Inputs read and gradients written once; a GEMM forward, two backward."""
    tokens, hidden, classes = shape["T"], shape["H"], shape["C"]
    element = torch.empty((), dtype=shape.dtype).element_size()
    operands = element * (tokens * hidden + classes * hidden)
    gemms = {"forward": 1, "backward": 2, "forward+backward": 3}[which]
    traffic = {"forward": 1, "backward": 2, "forward+backward": 2}[which]
    return Work(bytes=traffic * operands, flops=gemms * 2.0 * tokens * hidden * classes)


OP = Op(
    name="linear_cross_entropy",
    shapes=SHAPES,
    inputs=inputs,
    truth=truth,
    contenders=(
        Contender("eager", "baseline", function(eager)),
        Contender("torch.compile", "baseline", compiled, quick=False),
        Contender("native", "peer", native, no_native),
        Contender("native, chunked", "peer", native_chunked, no_native),
        Contender("Liger", "peer", liger, needs_gpu("liger_kernel")),
        Contender("Cut Cross-Entropy", "peer", cut_cross_entropy, needs_gpu("cut_cross_entropy")),
        Contender("fangyan reference", "ours", ours("reference")),
        Contender("fangyan cpp", "ours", ours("cpp"), cpu_only),
    ),
    work=work,
    scaling={"T": (256, 512, 1024, 2048), "H": (64, 128, 256, 512), "C": (9, 46, 185, 740)},
    claims=(
        Claim("fangyan reference", "tags", "forward+backward", 0.8),
        Claim("fangyan reference", "vocabulary", "forward+backward", 0.8),
    ),
    counted=(
        ("fangyan cpp", Shape("tags", {"T": 64, "H": 64, "C": 93})),
        ("fangyan cpp", Shape("vocabulary", {"T": 16, "H": 64, "C": 1000})),
    ),
)
