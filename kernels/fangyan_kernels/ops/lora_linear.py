"""Schemas, fakes and autograd formula of LoRA linears.

Shape suffixes: T tokens, K in, N out, R rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Layers(NamedTuple):
    """Frozen linear layers of one input, each with a low-rank adapter, in the order of the schema.

    Attributes:
        input_TK: what all layers take.
        weights: ``(N, K)`` each, or the packed bytes of 4-bit ones.
        biases_N: none, or one per layer.
        a_RK: the adapters' first matrices.
        b_NR: their second ones.
        scalings: s of each layer.
        dropout: probability of an element of the input not to reach the adapters.
        seed: int64, on the input's device; None where nothing is dropped.
        scales: of 4-bit weights (:class:`~fangyan_kernels.lora_linear.base_weights.QuantState4bit`); else
            empty. Likewise the others.
        blocks: elements per block.
        quant_type: ``nf4`` or ``fp4``.
    """

    input_TK: Tensor
    weights: list[Tensor]
    biases_N: list[Tensor]
    a_RK: list[Tensor]
    b_NR: list[Tensor]
    scalings: list[float]
    dropout: float
    seed: Tensor | None
    scales: list[Tensor]
    blocks: list[int]
    quant_type: str


_SCHEMA = (
    "Tensor input_TK, Tensor[] weights, Tensor[] biases_N, Tensor[] a_RK, Tensor[] b_NR, float[] scalings,"
    " float dropout, Tensor? seed, Tensor[] scales, int[] blocks, str quant_type"
)

# The layers' outputs, and with ``keep_low`` the adapters' (D * x) A' side by side, (T, R), where a back end
# keeps it for the backward.
torch.library.define(
    "fangyan::lora_linear", f"({_SCHEMA}, bool keep_low) -> (Tensor[] outputs_TN, Tensor low_TR)"
)

# The gradients of input, of every A, B and bias; those that are not wanted are empty. ``low_TR`` is the
# forward's, or empty.
torch.library.define(
    "fangyan::lora_linear_backward",
    f"(Tensor[] grads_TN, {_SCHEMA}, Tensor low_TR, bool wants_input, bool wants_adapters,"
    " bool wants_biases) -> (Tensor, Tensor[], Tensor[], Tensor[])",
)

# The low-rank part of one layer on the CPU, float32; b is s B'. Results are added in place; the gradients of
# a and b, where wanted, are returned.
torch.library.define(
    "fangyan::lora_forward_",
    "(Tensor(a!) output_TN, Tensor input_TK, Tensor a_RK, Tensor b_RN, Tensor? seed, float dropout) -> ()",
)
torch.library.define(
    "fangyan::lora_backward_",
    "(Tensor grad_TN, Tensor input_TK, Tensor a_RK, Tensor b_RN, Tensor? seed, float dropout,"
    " Tensor(a!)? grad_input_TK, bool wants_adapter) -> (Tensor, Tensor)",
)

# output (+)= D * input on the CPU, in bfloat16, in place.
torch.library.define(
    "fangyan::lora_dropout_",
    "(Tensor(a!) output_TK, Tensor input_TK, Tensor seed, float dropout, bool accumulate) -> ()",
)

# The overloads, which are called without a search for them.
_operator = torch.ops.fangyan.lora_linear.default
_backward_operator = torch.ops.fangyan.lora_linear_backward.default


@torch.library.register_fake("fangyan::lora_linear")
def _fake(*arguments: Any) -> tuple[list[Tensor], Tensor]:
    *inputs, keep_low = arguments
    layers = Layers(*inputs)
    tokens = layers.input_TK.shape[0]
    rank = sum(a.shape[0] for a in layers.a_RK)
    kept = keep_low and layers.input_TK.device.type == "cuda"
    low_TR = layers.input_TK.new_empty((tokens, rank) if kept else 0)
    return [layers.input_TK.new_empty(tokens, b.shape[0]) for b in layers.b_NR], low_TR


@torch.library.register_fake("fangyan::lora_linear_backward")
def _backward_fake(
    _grads_TN: list[Tensor], *arguments: Any
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    *inputs, _, wants_input, wants_adapters, wants_biases = arguments
    layers = Layers(*inputs)
    return (
        torch.empty_like(layers.input_TK) if wants_input else layers.input_TK.new_empty(0),
        [a.new_empty(a.shape) for a in layers.a_RK] if wants_adapters else [],
        [b.new_empty(b.shape) for b in layers.b_NR] if wants_adapters else [],
        [torch.empty_like(bias) for bias in layers.biases_N] if wants_biases else [],
    )


class _LoraLinear(torch.autograd.Function):
    """The operator's derivative. ``register_autograd`` flattens lists as pytrees, which takes 200 us.

    Autograd sees tensors that are arguments of their own, and none within lists: so the layers' tensors come
    one after another, and ``layout`` tells how many there are of each field.
    """

    @staticmethod
    def forward(ctx: Any, layout: _Layout, *tensors: Tensor | None) -> Any:
        ctx.layout = layout
        wants = layout.layers(ctx.needs_input_grad[1:])
        with torch._C._AutoDispatchBelowAutograd():
            outputs_TN, low_TR = _operator(*layout.layers(tensors), any(wants.a_RK) or any(wants.b_NR))
        # ZeRO-3 needs the weights themselves, not views of them. Nothing of T x N is kept.
        ctx.save_for_backward(low_TR, *tensors)
        ctx.mark_non_differentiable(low_TR)
        ctx.set_materialize_grads(False)  # zeros for low, among others
        return *outputs_TN, low_TR

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled() and any(type(grad) is Tensor for grad in grads):
            raise RuntimeError(
                "lora_linear: the gradient of a gradient (create_graph=True) is not implemented by its "
                "kernels, expected impl='reference'"
            )
        low_TR, *tensors = ctx.saved_tensors
        layers, wants = ctx.layout.layers(tensors), ctx.layout.layers(ctx.needs_input_grad[1:])
        grads_TN = [
            layers.input_TK.new_zeros(layers.input_TK.shape[0], b.shape[0]) if grad is None else grad
            for grad, b in zip(grads, layers.b_NR, strict=False)  # the last is low's
        ]
        wants_adapters, wants_biases = any(wants.a_RK) or any(wants.b_NR), any(wants.biases_N)
        grad_input_TK, grads_a, grads_b, grads_bias = _backward_operator(
            grads_TN, *layers, low_TR, wants.input_TK, wants_adapters, wants_biases
        )
        gradients = layers._replace(
            input_TK=grad_input_TK if wants.input_TK else None,
            weights=[None] * len(layers.weights),
            biases_N=_wanted(grads_bias, wants.biases_N),
            a_RK=_wanted(grads_a, wants.a_RK),
            b_NR=_wanted(grads_b, wants.b_NR),
            seed=None,
            scales=[None] * len(layers.scales),
        )
        return None, *_Layout.tensors(gradients)


class _Layout(NamedTuple):
    """How the tensors of :class:`Layers` stand one after another, and everything else of it."""

    rest: Layers
    counts: tuple[int, ...]

    @classmethod
    def of(cls, layers: Layers) -> _Layout:
        lists = layers.weights, layers.biases_N, layers.a_RK, layers.b_NR, layers.scales
        return cls(layers._replace(input_TK=None, seed=None), tuple(map(len, lists)))  # type: ignore[arg-type]

    @staticmethod
    def tensors(layers: Layers) -> tuple[Tensor | None, ...]:
        lists = layers.weights, layers.biases_N, layers.a_RK, layers.b_NR, layers.scales
        return layers.input_TK, layers.seed, *itertools.chain(*lists)

    def layers(self, tensors: Iterable[Any]) -> Layers:
        """Name values that stand in the order of :meth:`tensors`."""
        values = iter(tensors)
        input_TK, seed = next(values), next(values)
        weights, biases_N, a_RK, b_NR, scales = (
            list(itertools.islice(values, count)) for count in self.counts
        )
        return self.rest._replace(
            input_TK=input_TK,
            seed=seed,
            weights=weights,
            biases_N=biases_N,
            a_RK=a_RK,
            b_NR=b_NR,
            scales=scales,
        )


def _wanted(gradients: list[Tensor], wants: list[Any]) -> list[Any]:
    if not gradients:
        return [None] * len(wants)
    return [gradient if want else None for gradient, want in zip(gradients, wants, strict=True)]


@torch.library.impl("fangyan::lora_linear", "Autograd")
def _autograd(*arguments: Any) -> tuple[list[Tensor], Tensor]:
    *inputs, keep_low = arguments
    layers = Layers(*inputs)
    tensors = _Layout.tensors(layers)
    if not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in tensors):
        with torch._C._AutoDispatchBelowAutograd():
            outputs_TN, low_TR = _operator(*layers, keep_low)
        return outputs_TN, low_TR
    *outputs_TN, low_TR = _LoraLinear.apply(_Layout.of(layers), *tensors)
    return outputs_TN, low_TR


@torch.library.impl("fangyan::lora_linear", "CPU")
def _cpu(*arguments: Any) -> tuple[list[Tensor], Tensor]:
    from fangyan_kernels.lora_linear import matmuls

    return matmuls.forward(*arguments)


@torch.library.impl("fangyan::lora_linear_backward", "CPU")
def _backward_cpu(*arguments: Any) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    from fangyan_kernels.lora_linear import matmuls

    return matmuls.backward(*arguments)


@torch.library.impl("fangyan::lora_linear", "CUDA")
def _cuda(*arguments: Any) -> tuple[list[Tensor], Tensor]:
    from fangyan_kernels.lora_linear import launch

    with torch.cuda.device_of(arguments[0]):
        return launch.forward(*arguments)


@torch.library.impl("fangyan::lora_linear_backward", "CUDA")
def _backward_cuda(*arguments: Any) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    from fangyan_kernels.lora_linear import launch

    with torch.cuda.device_of(arguments[1]):
        return launch.backward(*arguments)
