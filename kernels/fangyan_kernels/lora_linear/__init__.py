"""Frozen linear layers with low-rank adapters, plain and 4-bit, as one op.

Shape suffixes: T tokens, K in, N out, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from fangyan_kernels.capability import refuse_bfloat16
from fangyan_kernels.lora_linear import reference
from fangyan_kernels.lora_linear.base_weights import BaseWeights, QuantState4bit, unpack_quant_state

__all__ = ["lora_linear"]

Implementation = Literal["auto", "reference", "cpu", "triton"]
_IMPLEMENTATIONS = ("auto", "reference", "cpu", "triton")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_RANK = 256


@overload
def lora_linear(
    input: Tensor,
    weight: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    *,
    bias: Tensor | None = ...,
    scaling: float = ...,
    dropout: float = ...,
    impl: Implementation = ...,
) -> Tensor: ...


@overload
def lora_linear(
    input: Tensor,
    weight: Sequence[Tensor],
    lora_A: Sequence[Tensor],
    lora_B: Sequence[Tensor],
    *,
    bias: Sequence[Tensor] | None = ...,
    scaling: Sequence[float] | float = ...,
    dropout: float = ...,
    impl: Implementation = ...,
) -> tuple[Tensor, ...]: ...


def lora_linear(
    input: Tensor,
    weight: Any,
    lora_A: Any,
    lora_B: Any,
    *,
    bias: Any = None,
    scaling: Any = 1.0,
    dropout: float = 0.0,
    impl: Implementation = "auto",
) -> Tensor | tuple[Tensor, ...]:
    """``linear(input, weight, bias) + scaling * linear(linear(dropout(input), lora_A), lora_B)``.

    Several projections of one input (queries, keys and values; gate and up) are given as sequences:
    they share one pass over the input, and what dropout leaves of it.

    Only ``input`` is kept for the backward, on a GPU also the adapter's (T, R). Dropout draws a seed from
    the generator of the input's device and stores no mask: the backward makes the same one again, and so
    does a checkpointed forward; a captured CUDA graph draws another at each replay. Pass ``dropout=0`` where
    the model is evaluated. Under autocast everything is cast as ``linear`` casts.

    Args:
        input: ``(..., K)``, floating point.
        weight: frozen, ``(N, K)`` in the dtype of ``input``, or a ``bitsandbytes`` ``Params4bit``
            (NF4 or FP4, nested or not).
        lora_A: ``(R, K)``, R at most 256; cast to the dtype of ``input``.
        lora_B: ``(N, R)``; cast likewise.
        bias: ``(N,)``, in the dtype of ``input``; of several projections all or none.
        scaling: of the adapter: alpha / R, or alpha / sqrt(R) for rsLoRA.
        dropout: probability in [0, 1) that an element of ``input`` does not reach the adapter.
        impl: ``reference`` (PyTorch, any device and dtype), ``cpu`` and ``triton`` (CUDA) in float32,
            bfloat16 and float16, or ``auto``. A named implementation that cannot run raises.

    Returns:
        ``(..., N)``, or a tuple of as many as there are projections.

    Raises:
        ValueError: naming the argument, what was found and what was expected: also of bfloat16 on a
            GPU below compute capability 8.0.

    Source:
        Hu et al. 2021, arXiv 2106.09685; 4-bit weights: Dettmers et al. 2023, arXiv 2305.14314.
    """
    single = isinstance(weight, Tensor)
    if single:
        weight, lora_A, lora_B = [weight], [lora_A], [lora_B]
        bias = None if bias is None else [bias]
    weights, biases, a, b = list(weight), list(bias or ()), list(lora_A), list(lora_B)
    scalings = [float(s) for s in (scaling if isinstance(scaling, Sequence) else [scaling] * len(weights))]
    if torch.is_autocast_enabled(input.device.type):
        dtype = torch.get_autocast_dtype(input.device.type)
        input, biases = input.to(dtype), [bias.to(dtype) for bias in biases]
        weights = [w if _is_four_bit(w) else w.to(dtype) for w in weights]
    four_bit = _four_bit(weights)
    _validate(input, weights, biases, a, b, scalings, dropout, four_bit)
    chosen = _choose(impl, input)
    if chosen != "reference":
        refuse_bfloat16(input)
    a, b = [m.to(input.dtype) for m in a], [m.to(input.dtype) for m in b]
    # On the input's device: a captured CUDA graph draws another one at every replay.
    seed = torch.empty((), dtype=torch.int64, device=input.device).random_() if dropout else None
    # Views would be two more nodes of the graph.
    flat = input.ndim == 2
    input_TK = input if flat else input.reshape(-1, input.shape[-1])
    packed = four_bit or QuantState4bit([], [], "")
    if chosen == "reference":
        frozen = BaseWeights(input_TK, weights, b, *packed)
        dense = [frozen.dense(i) for i in range(len(weights))]
        outputs = reference.lora_linear(input_TK, dense, biases, a, b, scalings, dropout, seed)
    else:
        outputs, _ = torch.ops.fangyan.lora_linear.default(
            input_TK, weights, biases, a, b, scalings, dropout, seed, *packed, False
        )
    if not flat:
        outputs = [output.view(*input.shape[:-1], output.shape[-1]) for output in outputs]
    return outputs[0] if single else tuple(outputs)


def _choose(impl: str, input: Tensor) -> str:
    if impl not in _IMPLEMENTATIONS:
        raise ValueError(f"impl is {impl!r}, expected one of {', '.join(_IMPLEMENTATIONS)}")
    device, fits = input.device.type, input.dtype in _DTYPES
    if impl == "auto":
        return {"cpu": "cpu", "cuda": "triton"}.get(device, "reference") if fits else "reference"
    needed = {"cpu": "cpu", "triton": "cuda"}.get(impl, device)
    if impl != "reference" and not (fits and device == needed):
        raise ValueError(
            f"impl={impl!r} takes float32, bfloat16 and float16 on {needed}, "
            f"input is {input.dtype} on {device}"
        )
    return impl


def _is_four_bit(weight: Tensor) -> bool:
    return getattr(weight, "quant_state", None) is not None


def _four_bit(weights: list[Tensor]) -> QuantState4bit | None:
    """What the operator is told of 4-bit weights; None if the weights are plain.

    Raises:
        ValueError: if they are not all of one kind.
    """
    if not any(_is_four_bit(weight) for weight in weights):
        return None
    if not all(_is_four_bit(weight) for weight in weights):
        raise ValueError("weight holds plain and 4-bit matrices, expected one kind for all projections")
    found = [unpack_quant_state(weight) for weight in weights]
    if any((part.blocks, part.quant_type) != (found[0].blocks, found[0].quant_type) for part in found):
        raise ValueError("weight holds 4-bit matrices of several block sizes or types, expected one")
    return QuantState4bit([scale for part in found for scale in part.scales], *found[0][1:])


def _validate(
    input: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    a: list[Tensor],
    b: list[Tensor],
    scalings: list[float],
    dropout: float,
    four_bit: QuantState4bit | None,
) -> None:
    if not input.is_floating_point() or input.ndim == 0:
        raise ValueError(f"input is {_describe(input)}, expected floating point of shape (..., K)")
    counts = {"lora_A": len(a), "lora_B": len(b), "scaling": len(scalings)}
    if biases:
        counts["bias"] = len(biases)
    for name, count in counts.items():
        if count != len(weights) or not weights:
            raise ValueError(f"{name} has {count} entries, expected one for each of {len(weights)} weights")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout is {dropout}, expected a number in [0, 1)")
    inner = input.shape[-1]
    for i, (weight, a_RK, b_NR) in enumerate(zip(weights, a, b, strict=True)):
        shape = tuple(weight.quant_state.shape if four_bit else weight.shape)  # type: ignore[attr-defined]
        if len(shape) != 2 or shape[1] != inner:
            raise ValueError(f"weight is of shape {shape}, expected (N, {inner})")
        if not four_bit and weight.dtype != input.dtype:
            raise ValueError(f"weight is {weight.dtype}, expected input's {input.dtype}")
        if weight.requires_grad:
            raise ValueError("weight requires a gradient, which this op does not give; expected it frozen")
        if a_RK.ndim != 2 or a_RK.shape[1] != inner or not 1 <= a_RK.shape[0] <= MOST_RANK:
            raise ValueError(
                f"lora_A is {_describe(a_RK)}, expected (R, {inner}) with R from 1 to {MOST_RANK}"
            )
        if b_NR.shape != (shape[0], a_RK.shape[0]):
            raise ValueError(f"lora_B is {_describe(b_NR)}, expected shape {(shape[0], a_RK.shape[0])}")
        if biases and (biases[i].shape != shape[:1] or biases[i].dtype != input.dtype):
            raise ValueError(f"bias is {_describe(biases[i])}, expected {input.dtype} of shape {shape[:1]}")
        for name, value in (("weight", weight), ("lora_A", a_RK), ("lora_B", b_NR)):
            if value.device != input.device:
                raise ValueError(f"{name} is on {value.device}, expected input's {input.device}")


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"
