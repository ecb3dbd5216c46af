"""Linear cross-entropy by Triton kernels: for few classes or for many, by their number."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fangyan_kernels.launching import launch
from fangyan_kernels.linear_cross_entropy import triton_large_vocab, triton_small_vocab
from fangyan_kernels.linear_cross_entropy.triton_shared import (
    SCALE,
    Call,
    processors,
    scale_gradients,
    sum_target_weights,
)
from fangyan_kernels.ops.linear_cross_entropy import Inputs, Options, split


def linear_cross_entropy(*arguments: Any) -> tuple[Tensor, ...]:
    """Compute the operator ``fangyan::linear_cross_entropy``; ``gradient_filter`` is unused: all is exact."""
    inputs, options = split(arguments)
    contiguous: list[Any] = [None if tensor is None else tensor.contiguous() for tensor in inputs]
    inputs = Inputs(*contiguous)
    small = _is_small(inputs, options)
    averages = options.reduction == "mean" and inputs.divisor is None
    partial_sums = inputs.divisor
    # It also checks the targets, which the kernels for few classes do by themselves.
    if not small or averages:
        sums = sum_target_weights(inputs, options.ignore_index)
        partial_sums = sums if averages else partial_sums
    call = Call(inputs, options, partial_sums)
    if small:
        return triton_small_vocab.linear_cross_entropy(call)
    return triton_large_vocab.linear_cross_entropy(call)


def _is_small(inputs: Inputs, options: Options) -> bool:
    """Return whether the kernels for few classes run.

    Raises:
        ValueError: if they are asked for and take fewer classes.
    """
    classes = inputs.weight_CH.shape[0]
    most = triton_small_vocab.MAX_CLASSES[inputs.input_TH.element_size()]
    if options.variant == "small_vocab" and classes > most:
        raise ValueError(
            f"impl='triton_small_vocab' takes {most} classes of {inputs.input_TH.dtype} at most, "
            f"linear_weight has {classes}"
        )
    return options.variant == "small_vocab" or (options.variant == "auto" and classes <= most)


def scale_gradients_(first: Tensor, second: Tensor, third: Tensor, scale: Tensor) -> None:
    """Compute the operator ``fangyan::scale_gradients_``: contiguous gradients times ``scale``, in place."""
    largest = max(first.numel(), second.numel(), third.numel())
    programs = max(1, min(-(-largest // SCALE["BLOCK"]), 8 * processors(first.device)))
    launch(
        scale_gradients,
        (programs, 1),
        (first, second, third, scale),
        (first.numel(), second.numel(), third.numel()),
        (),
        SCALE,
    )
