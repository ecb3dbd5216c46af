"""An AdamW step over one flat vector, as a ZeRO optimizer takes it.

P parameters. Loshchilov & Hutter 2019 (arXiv 1711.05101); 8-bit states in blocks of 256: Dettmers
et al. 2022 (arXiv 2110.02861).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fangyan_bench.harness.op import CALL, Cost, ExpectedSpeedup, Implementation, Inputs, Op, Shape

LR, BETAS, EPS, DECAY = 1e-3, (0.9, 0.999), 1e-8, 0.01
STEPS_CHECKED = 3  # the first step alone would not read a state

SHAPES = (
    Shape("step", {"P": 4_000_000}, quick=True),
    Shape("step", {"P": 20_000_000}),
    Shape("step", {"P": 200_000_000}),
    Shape("step", {"P": 100_000_000}, "cuda", quick=True),
)


def inputs(shape: Shape, generator: torch.Generator) -> Inputs:
    """Return parameters and their gradient."""
    parameters = torch.randn(shape["P"], generator=generator, device=shape.device)
    gradient = torch.randn(shape["P"], generator=generator, device=shape.device)
    return 0.01 * parameters, gradient


def reference(parameters: Tensor, gradient: Tensor) -> Tensor:
    """Return the parameters after some steps on one gradient: bias-corrected, both averages equal it."""
    update = gradient / (gradient.abs() + EPS)
    for _ in range(STEPS_CHECKED):
        parameters = parameters * (1 - LR * DECAY) - LR * update
    return parameters


def stepping(make: Callable[..., Any]) -> Callable[[Shape, Inputs], Callable[[], Tensor]]:
    """Return the ``prepare`` of an optimizer, of which one call is one step."""

    def prepare(_shape: Shape, values: Inputs) -> Callable[[], Tensor]:
        parameter = torch.nn.Parameter(values[0].clone())
        parameter.grad = values[1]
        optimizer = make([parameter], lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)

        def step() -> Tensor:
            optimizer.step()
            return parameter

        return step

    return prepare


def bitsandbytes(*arguments: Any, **settings: Any) -> Any:
    """Make bitsandbytes' 8-bit optimizer."""
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(*arguments, **settings)


def fangyan(*arguments: Any, **settings: Any) -> Any:
    """Make our 8-bit optimizer."""
    from fangyan_kernels import AdamW8bit

    return AdamW8bit(*arguments, **settings)


def deepspeed_cpu(*arguments: Any, **settings: Any) -> Any:
    """Make DeepSpeed's 32-bit optimizer for the CPU."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return DeepSpeedCPUAdam(*arguments, **settings, adamw_mode=True)


def fused(*arguments: Any, **settings: Any) -> Any:
    """Make PyTorch's fused optimizer."""
    return torch.optim.AdamW(*arguments, **settings, fused=True)


def for_each(*arguments: Any, **settings: Any) -> Any:
    """Make PyTorch's optimizer over lists of tensors."""
    return torch.optim.AdamW(*arguments, **settings, foreach=True)


def cpu_only(shape: Shape) -> str | None:
    """Return why a CPU optimizer cannot run, or None."""
    return None if shape.device == "cpu" else "it steps on the CPU"


def small_on_the_cpu(shape: Shape) -> str | None:
    """Return why an optimizer that is slow on the CPU is left out, or None."""
    return "six seconds per step" if shape.device == "cpu" and shape["P"] > 100_000_000 else None


def cost(shape: Shape, _pass_name: str) -> Cost:
    """Count the parameter read and written, the gradient read, two 8-bit states read and written."""
    return Cost(bytes=16.0 * shape["P"], flops=15.0 * shape["P"])


OP = Op(
    name="adamw",
    module=__name__,
    shapes=SHAPES,
    inputs=inputs,
    reference=reference,
    implementations=(
        Implementation("torch, for each", "baseline", stepping(for_each)),
        Implementation("torch, fused", "baseline", stepping(fused)),
        # DeepSpeed builds its extension on first use.
        Implementation("DeepSpeedCPUAdam", "peer", stepping(deepspeed_cpu), cpu_only, quick=False),
        # Relative to the parameters' norm: three steps move them by 0.3 of it, and 8 bits were off by 0.01.
        Implementation(
            "bitsandbytes 8-bit", "peer", stepping(bitsandbytes), small_on_the_cpu, tolerance=0.02
        ),
        Implementation("fangyan 8-bit", "ours", stepping(fangyan), cpu_only, tolerance=0.02),
    ),
    cost=cost,
    passes=CALL,
    calls_checked=STEPS_CHECKED,
    scaling={"P": (1_000_000, 3_000_000, 10_000_000, 30_000_000)},
    expected_speedups=(ExpectedSpeedup("fangyan 8-bit", "step-P4000000", "call", 1.3),),
    counted=(("fangyan 8-bit", Shape("step", {"P": 16_384})),),
)
