"""Frozen linear layers with low-rank adapters, plain and 4-bit, as one op.

Shape suffixes: T tokens, K in, N out, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor

from fangyan_kernels.capability import refuse_bfloat16
from fangyan_kernels.lora_linear import reference
from fangyan_kernels.lora_linear.base_weights import QuantState4bit, unpack_quant_state
from fangyan_kernels.ops.lora_linear import Layers
from fangyan_kernels.validation import choose_implementation, describe

__all__ = ["lora_linear"]

Implementation = Literal["auto", "reference", "cpp", "triton"]
_IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)
MAX_RANK = 256


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
    """Compute ``linear(input, weight, bias) + scaling * linear(linear(dropout(input), lora_A), lora_B)``.

    Several projections of one input (queries, keys and values; gate and up) are passed as sequences:
    they share one pass over the input, and its dropout.

    Only ``input`` is kept for the backward, on a GPU also the adapter's (T, R). Dropout draws a seed from
    the generator of the input's device and stores no mask: the backward draws the same one again, and so
    does a checkpointed forward; a captured CUDA graph draws another at each replay. Pass ``dropout=0`` for
    evaluation. Under autocast everything is cast as ``linear`` casts.

    Args:
        input: ``(..., K)``, floating point.
        weight: frozen, ``(N, K)`` in the dtype of ``input``, or a ``bitsandbytes`` ``Params4bit``
            (NF4 or FP4, nested or not).
        lora_A: ``(R, K)``, R at most 256; cast to the dtype of ``input``.
        lora_B: ``(N, R)``; cast likewise.
        bias: ``(N,)``, in the dtype of ``input``; for several projections all or none.
        scaling: factor of the adapter: alpha / R, or alpha / sqrt(R) for rsLoRA.
        dropout: probability in [0, 1) that an element of ``input`` does not reach the adapter.
        impl: ``reference`` (PyTorch, any device and dtype), ``cpp`` (CPU) and ``triton`` (CUDA) in float32,
            bfloat16 and float16, or ``auto``. A named implementation that cannot run raises.

    Returns:
        ``(..., N)``, or a tuple with one per projection.

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
    quant_state = _quant_state(weights)
    _validate(input, weights, biases, a, b, scalings, dropout, quant_state)
    chosen = choose_implementation(impl, input, _IMPLEMENTATIONS)
    # On the input's device: a captured CUDA graph draws another one at every replay.
    seed = torch.empty((), dtype=torch.int64, device=input.device).random_() if dropout else None
    # Views would be two more nodes of the graph.
    input_TK = input if input.ndim == 2 else input.reshape(-1, input.shape[-1])
    a_RK, b_NR = [m.to(input.dtype) for m in a], [m.to(input.dtype) for m in b]
    adapters = input_TK, weights, biases, a_RK, b_NR, scalings, dropout, seed
    layers = Layers(*adapters, *(quant_state or QuantState4bit([], [], "")))
    if chosen == "reference":
        outputs = reference.lora_linear(layers)
    else:
        refuse_bfloat16(input)
        outputs, _ = torch.ops.fangyan.lora_linear.default(*layers, False)
    if input.ndim != 2:
        outputs = [output.view(*input.shape[:-1], output.shape[-1]) for output in outputs]
    return outputs[0] if single else tuple(outputs)


def _is_four_bit(weight: Tensor) -> bool:
    return getattr(weight, "quant_state", None) is not None


def _quant_state(weights: list[Tensor]) -> QuantState4bit | None:
    """Return the joint state of 4-bit weights; None if the weights are plain.

    Raises:
        ValueError: if they are not all of one kind.
    """
    if not any(_is_four_bit(weight) for weight in weights):
        return None
    if not all(_is_four_bit(weight) for weight in weights):
        raise ValueError("weight holds plain and 4-bit matrices, expected one kind for all projections")
    found = [unpack_quant_state(weight) for weight in weights]
    if any((state.blocks, state.quant_type) != (found[0].blocks, found[0].quant_type) for state in found):
        raise ValueError("weight holds 4-bit matrices of several block sizes or types, expected one")
    scales = [scale for state in found for scale in state.scales]
    return QuantState4bit(scales, found[0].blocks, found[0].quant_type)


def _validate(
    input: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    a: list[Tensor],
    b: list[Tensor],
    scalings: list[float],
    dropout: float,
    quant_state: QuantState4bit | None,
) -> None:
    if not input.is_floating_point() or input.ndim == 0:
        raise ValueError(f"input is {describe(input)}, expected floating point of shape (..., K)")
    counts = {"lora_A": len(a), "lora_B": len(b), "scaling": len(scalings)}
    if biases:
        counts["bias"] = len(biases)
    for name, count in counts.items():
        if count != len(weights) or not weights:
            raise ValueError(f"{name} has {count} entries, expected one for each of {len(weights)} weights")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout is {dropout}, expected a number in [0, 1)")
    in_features = input.shape[-1]
    for i, (weight, a_RK, b_NR) in enumerate(zip(weights, a, b, strict=True)):
        shape = tuple(weight.quant_state.shape if quant_state else weight.shape)  # type: ignore[attr-defined]
        if len(shape) != 2 or shape[1] != in_features:
            raise ValueError(f"weight is of shape {shape}, expected (N, {in_features})")
        if not quant_state and weight.dtype != input.dtype:
            raise ValueError(f"weight is {weight.dtype}, expected input's {input.dtype}")
        if weight.requires_grad:
            raise ValueError("weight requires a gradient, which this op does not give; expected it frozen")
        if a_RK.ndim != 2 or a_RK.shape[1] != in_features or not 1 <= a_RK.shape[0] <= MAX_RANK:
            raise ValueError(
                f"lora_A is {describe(a_RK)}, expected (R, {in_features}) with R from 1 to {MAX_RANK}"
            )
        if b_NR.shape != (shape[0], a_RK.shape[0]):
            raise ValueError(f"lora_B is {describe(b_NR)}, expected shape {(shape[0], a_RK.shape[0])}")
        if biases and (biases[i].shape != shape[:1] or biases[i].dtype != input.dtype):
            raise ValueError(f"bias is {describe(biases[i])}, expected {input.dtype} of shape {shape[:1]}")
        for name, value in (("weight", weight), ("lora_A", a_RK), ("lora_B", b_NR)):
            if value.device != input.device:
                raise ValueError(f"{name} is on {value.device}, expected input's {input.device}")
