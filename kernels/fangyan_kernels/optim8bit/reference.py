"""The meaning of a step with 8-bit states, in plain PyTorch on any device.

A state is kept as a code for every number and a scale for every 256 of them, their largest absolute value. A
code is the place, in an ascending map of 256 numbers, of the one nearest to the number over its scale; of two
equally near ones the lower (Dettmers et al. 2022, arXiv 2110.02861; bitsandbytes' own choice on the GPU).

But an average of squares never gets the code of 0 (Li et al. 2023, arXiv 2309.01507): a number whose
gradient is ten thousand times smaller than its block's largest would be stepped by its first average over
eps. Over 100 steps on gradients of log-normal size (sigma 1) the way of AdamW in float64 was missed by 0.24
with that code, by 0.076 without; with sigma 2 by 136 and by 0.34. bitsandbytes on the CPU, which rounds small
numbers up to 1.5e-5, misses it by 0.11 and 0.55.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK = 256


def quantize(values: Tensor, qmap: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, of the values' shape, and a scale for every :data:`BLOCK` values (the last may be fewer)."""
    size = values.numel()
    blocks = torch.nn.functional.pad(values.flatten(), (0, -size % BLOCK)).view(-1, BLOCK)
    absmax = blocks.abs().amax(1)
    # The reciprocal of a smaller scale would be infinite.
    ratios = blocks * (1.0 / absmax.clamp(min=1e-36))[:, None]
    middles = (qmap[:-1] + qmap[1:]) / 2
    codes = torch.bucketize(ratios, middles).to(torch.uint8)
    if qmap[0] >= 0:
        codes = codes.clamp(min=1)
    return codes.flatten()[:size].view(values.shape), absmax


def dequantize(codes: Tensor, absmax: Tensor, qmap: Tensor) -> Tensor:
    """The numbers that :func:`quantize` stored, float32."""
    scales = absmax.repeat_interleave(BLOCK)[: codes.numel()]
    return (qmap[codes.flatten().long()] * scales).view(codes.shape)


def optimizer_step_(
    algorithm: str,
    parameter: Tensor,
    gradient: Tensor,
    state1: Tensor,
    state2: Tensor | None,
    absmax1: Tensor | None,
    absmax2: Tensor | None,
    qmap1: Tensor | None,
    qmap2: Tensor | None,
    copy: Tensor | None,
    lr: float,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    step: int,
    gradient_scale: float = 1.0,
) -> int:
    """The operator ``fangyan::optimizer_step_``.

        adam      m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g g,
                  p = (1 - lr wd) p - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)
        lion      p = (1 - lr wd) p - lr sign(b1 m + (1 - b1) g),  m = b2 m + (1 - b2) g
        ademamix  as adam, with m / (1 - b1^t) + alpha n in place of m / (1 - b1^t),  n = b3 n + (1 - b3) g

    A number whose gradient is not finite, or whose averages would not be, keeps its value; its averages fade
    as for a gradient of 0, and the rest of its block is as if it were not there.

    Args:
        parameter, state1, state2, absmax1, absmax2, copy: updated in place; ``copy`` gets the parameter in
            bfloat16. States are codes with scales and maps, or float32. ademamix' state1 holds m and n.
        step: t, from 1.
        gradient_scale: g is so many times ``gradient``, which is clipped without a pass of its own.

    Returns:
        How many numbers were left as they were.
    """
    with torch.no_grad():
        three = algorithm == "ademamix"
        first = _decoded(state1, absmax1, qmap1, 2 if three else 1)
        second = None if state2 is None else _decoded(state2, absmax2, qmap2, 1)[0]
        p, g = parameter.float().flatten(), gradient_scale * gradient.float().flatten()

        direction, averages, square = _averages(algorithm, g, first, second, beta1, beta2, beta3)
        finite = torch.isfinite(torch.stack([direction, *averages])).all(0)
        if square is not None:
            finite &= torch.isfinite(square)
        g = torch.where(finite, g, torch.zeros_like(g))
        direction, averages, square = _averages(algorithm, g, first, second, beta1, beta2, beta3)

        if square is None:
            update = direction.sign()
        else:
            update = direction / (1 - beta1**step)
            if three:
                update = update + alpha * averages[1]
            update = update / (square.sqrt() / math.sqrt(1 - beta2**step) + eps)
        p = torch.where(finite, (1 - lr * weight_decay) * p - lr * update, p)
        parameter.copy_(p.view(parameter.shape))
        if copy is not None:
            copy.copy_(p.view(copy.shape))
        _store(averages, state1, absmax1, qmap1)
        if square is not None and state2 is not None:
            _store([square], state2, absmax2, qmap2)
        return int((~finite).sum())


def _averages(
    algorithm: str,
    g: Tensor,
    first: list[Tensor],
    second: Tensor | None,
    beta1: float,
    beta2: float,
    beta3: float,
) -> tuple[Tensor, list[Tensor], Tensor | None]:
    """What is stepped along, the new first averages, and the new average of squares."""
    direction = beta1 * first[0] + (1 - beta1) * g
    if algorithm == "lion":
        return direction, [beta2 * first[0] + (1 - beta2) * g], None
    assert second is not None
    square = beta2 * second + (1 - beta2) * g * g
    if algorithm == "ademamix":
        return direction, [direction, beta3 * first[1] + (1 - beta3) * g], square
    return direction, [direction], square


def _decoded(state: Tensor, absmax: Tensor | None, qmap: Tensor | None, count: int) -> list[Tensor]:
    parts = state.reshape(count, -1)
    if absmax is None or qmap is None:
        return list(parts.clone())
    return [
        dequantize(codes, scales, qmap) for codes, scales in zip(parts, absmax.view(count, -1), strict=True)
    ]


def _store(values: list[Tensor], state: Tensor, absmax: Tensor | None, qmap: Tensor | None) -> None:
    if absmax is None or qmap is None:
        state.copy_(torch.stack(values).view(state.shape))
        return
    codes, scales = zip(*(quantize(value, qmap) for value in values), strict=True)
    state.copy_(torch.stack(codes).view(state.shape))
    absmax.copy_(torch.stack(scales).view(absmax.shape))
