"""A linear head with softmax cross-entropy: token tags, and vocabularies.

T tokens, H hidden, C classes, L percent of the targets valid: sub-word continuations, special tokens and
padding are ignored, and of a masked language model's tokens 15% are valid. Ours, like all implementations
that keep no logits, computes the gradients in its forward: compare forward and backward together.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from fangyan_kernels import linear_cross_entropy
from fangyan_kernels.testing import cross_entropy_kernels
from torch import Tensor

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

IGNORE_INDEX = -100
# Relative to the norm. These peers sum the weight's gradient in the inputs' dtype, over chunks or blocks of
# tokens: they are timed as they are, and their measured error is reported.
IN_BF16 = 0.1

SHAPES = (
    Shape("tags", {"T": 8192, "H": 256, "C": 188, "L": 85}, quick=True),
    Shape("tags", {"T": 8192, "H": 256, "C": 188, "L": 50}, quick=True),
    Shape("tags", {"T": 8192, "H": 768, "C": 32, "L": 100}),
    Shape("tags", {"T": 8192, "H": 768, "C": 32, "L": 50}),
    Shape("tags", {"T": 2048, "H": 768, "C": 9, "L": 85}),
    Shape("vocabulary", {"T": 512, "H": 256, "C": 8287, "L": 100}, quick=True),
    Shape("vocabulary", {"T": 2048, "H": 256, "C": 21128, "L": 100}),
    Shape("vocabulary", {"T": 2048, "H": 768, "C": 21128, "L": 100}),
    Shape("masked", {"T": 1024, "H": 256, "C": 8287, "L": 15}, quick=True),
    Shape("masked", {"T": 2048, "H": 256, "C": 21128, "L": 15}),
    Shape("masked", {"T": 2048, "H": 768, "C": 21128, "L": 15}),
    # Logits of a trained model's spread: most classes have next to no probability.
    Shape("peaked", {"T": 2048, "H": 256, "C": 21128, "L": 100}),
    *(
        Shape("tags", {"T": 65536, "H": hidden, "C": classes, "L": 100}, "cuda", torch.bfloat16, quick)
        for hidden, classes, quick in (
            (768, 7, False),
            (1024, 7, True),
            (4096, 7, False),
            (768, 32, False),
            (1024, 32, False),
            (4096, 32, False),
            (768, 188, False),
            (1024, 188, True),
            (4096, 188, False),
        )
    ),
    Shape("tags", {"T": 65536, "H": 1024, "C": 32, "L": 50}, "cuda", torch.bfloat16),
    Shape("vocabulary", {"T": 8192, "H": 768, "C": 21128, "L": 100}, "cuda", torch.bfloat16, quick=True),
    Shape("vocabulary", {"T": 8192, "H": 4096, "C": 128256, "L": 100}, "cuda", torch.bfloat16),
    Shape("vocabulary", {"T": 16384, "H": 2048, "C": 248320, "L": 100}, "cuda", torch.bfloat16),
    Shape("masked", {"T": 8192, "H": 768, "C": 21128, "L": 15}, "cuda", torch.bfloat16, quick=True),
    Shape("masked", {"T": 8192, "H": 4096, "C": 128256, "L": 15}, "cuda", torch.bfloat16),
)


def inputs(shape: Shape, generator: torch.Generator) -> Inputs:
    """Return hidden states, the head's weight and targets."""
    tokens, hidden, classes = shape["T"], shape["H"], shape["C"]

    def noise(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, device=shape.device)

    spread = 8.0 if shape.name == "peaked" else 1.0
    input_TH = noise(tokens, hidden).to(shape.dtype).requires_grad_()
    weight_CH = (spread * noise(classes, hidden) / hidden**0.5).to(shape.dtype).requires_grad_()
    target_T = torch.randint(classes, (tokens,), generator=generator, device=shape.device)
    ignored = torch.rand(tokens, generator=generator, device=shape.device) >= shape["L"] / 100
    target_T[ignored] = IGNORE_INDEX
    return input_TH, weight_CH, target_T


class _Products(torch.autograd.Function):
    """The three matrix products alone, on any values: no loss is computed."""

    @staticmethod
    def forward(ctx: Any, input_TH: Tensor, weight_CH: Tensor) -> Tensor:
        logits_TC = input_TH @ weight_CH.T
        ctx.save_for_backward(input_TH, weight_CH, logits_TC)
        return input_TH.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _grad: Tensor) -> tuple[Tensor, Tensor]:
        input_TH, weight_CH, logits_TC = ctx.saved_tensors
        return logits_TC @ weight_CH, logits_TC.T @ input_TH


def products(input_TH: Tensor, weight_CH: Tensor, _target_T: Tensor) -> Any:
    """Compute the three matrix products alone."""
    apply: Callable[..., Any] = _Products.apply
    return apply(input_TH, weight_CH)


def eager(input_TH: Tensor, weight_CH: Tensor, target_T: Tensor) -> Tensor:
    """Compute the loss as a plain model does, the softmax in float32."""
    return F.cross_entropy(F.linear(input_TH, weight_CH).float(), target_T)


def reference(input_TH: Tensor, weight_CH: Tensor, target_T: Tensor) -> Tensor:
    """Compute the loss in the inputs' own dtype, float64."""
    return F.cross_entropy(F.linear(input_TH, weight_CH), target_T)


def native(_shape: Shape, values: Inputs) -> Callable[[], Any]:
    """Prepare PyTorch's own op."""
    return lambda: F.linear_cross_entropy(*values)


def native_chunked(_shape: Shape, values: Inputs) -> Callable[[], Any]:
    """Prepare PyTorch's own op over chunks of tokens."""
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda: F.linear_cross_entropy(*values, options=options)


def no_native(_shape: Shape) -> str | None:
    """Return why PyTorch's own op is missing, or None."""
    if hasattr(F, "linear_cross_entropy"):
        return None
    return f"torch {torch.__version__} has none, expected 2.13"


def liger(_shape: Shape, values: Inputs) -> Callable[[], Any]:
    """Prepare Liger's loss."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORE_INDEX)
    input_TH, weight_CH, target_T = values
    return lambda: loss(weight_CH, input_TH, target_T)


def cut_cross_entropy(_shape: Shape, values: Inputs) -> Callable[[], Any]:
    """Prepare Apple's Cut Cross-Entropy."""
    from cut_cross_entropy import linear_cross_entropy as cce

    # Its default filters small gradients out; without it, it computes what all others do.
    return lambda: cce(*values, filter_eps=None)


def needs_gpu(package: str) -> Callable[[Shape], str | None]:
    """Return the ``missing`` of a package whose kernels need a GPU."""

    def missing(shape: Shape) -> str | None:
        if shape.device != "cuda":
            return "its kernels need a CUDA GPU"
        return None if find_spec(package) else f"{package} is not installed"

    return missing


def ours(**options: Any) -> Callable[[Shape, Inputs], Callable[[], Any]]:
    """Return the ``prepare`` of our op under these options."""

    def prepare(_shape: Shape, values: Inputs) -> Callable[[], Any]:
        # Whoever makes a batch knows how many labels it has, before it is on the GPU.
        num_valid = int((values[2] != IGNORE_INDEX).sum())
        return lambda: linear_cross_entropy(*values, max_valid=num_valid, **options)

    return prepare


def uncounted(_shape: Shape, values: Inputs) -> Callable[[], Any]:
    """Prepare our op without telling it how many targets are valid."""
    return lambda: linear_cross_entropy(*values)


def only(name: str, device: str) -> Callable[[Shape], str | None]:
    """Return the ``missing`` of what differs from others at some shapes alone."""

    def missing(shape: Shape) -> str | None:
        fits = shape.name == name and shape.device == device
        return None if fits else f"it differs for {name} shapes on {device} alone"

    return missing


def cost(shape: Shape, pass_name: str) -> Cost:
    """Count one GEMM of the valid tokens forward, two backward; operands read, gradients written."""
    hidden, classes = shape["H"], shape["C"]
    num_valid = shape["T"] * shape["L"] / 100
    element = torch.empty((), dtype=shape.dtype).element_size()
    read = element * (num_valid * hidden + classes * hidden)
    written = element * (shape["T"] * hidden + classes * hidden)
    gemms = {"forward": 1, "backward": 2, "forward+backward": 3}[pass_name]
    moved = {"forward": read, "backward": read + written, "forward+backward": read + written}[pass_name]
    return Cost(bytes=moved, flops=gemms * 2.0 * num_valid * hidden * classes)


BOTH = "forward+backward"

OP = Op(
    name="linear_cross_entropy",
    module=__name__,
    shapes=SHAPES,
    inputs=inputs,
    reference=reference,
    implementations=(
        Implementation("eager", "baseline", function(eager)),
        Implementation("torch.compile", "baseline", function(compiled(eager)), quick=False, compiled=True),
        Implementation("products alone", "baseline", function(products), computes=False),
        Implementation("native", "peer", native, no_native),
        Implementation("native, chunked", "peer", native_chunked, no_native, quick=False),
        Implementation("Liger", "peer", liger, needs_gpu("liger_kernel"), IN_BF16),
        Implementation(
            "Cut Cross-Entropy", "peer", cut_cross_entropy, needs_gpu("cut_cross_entropy"), IN_BF16
        ),
        Implementation("fangyan reference", "ours", ours(impl="reference"), quick=False),
        Implementation("fangyan", "ours", ours()),
        Implementation("fangyan, labels not counted", "ours", uncounted, only("masked", "cuda")),
        # Relative to the gradient's norm; the test of the option bounds what is left out.
        Implementation(
            "fangyan, filtered", "ours", ours(gradient_filter=2**-12), only("peaked", "cpu"), tolerance=0.02
        ),
    ),
    cost=cost,
    checked_at={"T": 2048},
    scaling={"T": (512, 1024, 2048, 4096), "H": (64, 128, 256, 512), "C": (9, 46, 185, 740)},
    expected_speedups=(
        ExpectedSpeedup("fangyan", "tags-T8192-H256-C188-L85", BOTH, 1.0),
        ExpectedSpeedup("fangyan", "tags-T8192-H256-C188-L50", BOTH, 1.3),
        ExpectedSpeedup("fangyan", "vocabulary-T512-H256-C8287-L100", BOTH, 1.0),
        ExpectedSpeedup("fangyan", "masked-T1024-H256-C8287-L15", BOTH, 5.0),
    ),
    counted=(
        ("fangyan", Shape("tags", {"T": 64, "H": 64, "C": 93, "L": 85})),
        ("fangyan", Shape("vocabulary", {"T": 16, "H": 64, "C": 1000, "L": 85})),
    ),
    kernels=cross_entropy_kernels.KERNELS,
)
