"""Linear cross-entropy by Triton kernels: token tags and vocabularies, by the number of classes."""

from __future__ import annotations

from torch import Tensor

from fangyan_kernels.launching import launch
from fangyan_kernels.linear_cross_entropy import triton_large_vocab, triton_small_vocab
from fangyan_kernels.linear_cross_entropy.triton_shared import (
    SCALE,
    Call,
    processors,
    scale_three,
    weigh,
)


def linear_cross_entropy(
    input_TH: Tensor,
    weight_CH: Tensor,
    bias_C: Tensor | None,
    target_T: Tensor,
    class_weight_C: Tensor | None,
    token_weight_T: Tensor | None,
    divisor: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    gradient_filter: float,
    max_valid: int | None,
    variant: str,
    predict: bool,
    grad_input: bool,
    grad_weight: bool,
    grad_bias: bool,
) -> tuple[Tensor, ...]:
    """The operator ``fangyan::linear_cross_entropy``; ``gradient_filter`` is not used: all is exact."""
    input_TH, weight_CH, target_T = input_TH.contiguous(), weight_CH.contiguous(), target_T.contiguous()
    class_weight_C = None if class_weight_C is None else class_weight_C.contiguous()
    token_weight_T = None if token_weight_T is None else token_weight_T.contiguous()
    classes, most = weight_CH.shape[0], triton_small_vocab.MAX_CLASSES[input_TH.element_size()]
    if variant == "small_vocab" and classes > most:
        raise ValueError(
            f"impl='triton_small_vocab' takes {most} classes of {input_TH.dtype} at most, "
            f"linear_weight has {classes}"
        )
    small = variant == "small_vocab" or (variant == "auto" and classes <= most)
    parts = divisor
    # It also checks the targets, which the kernels of tags do by themselves.
    if not small or (reduction == "mean" and divisor is None):
        weights = weigh(target_T, class_weight_C, token_weight_T, classes, ignore_index)
        parts = weights if reduction == "mean" and divisor is None else parts
    call = Call(
        input_TH=input_TH,
        weight_CH=weight_CH,
        bias_C=None if bias_C is None else bias_C.contiguous(),
        target_T=target_T,
        class_weight_C=class_weight_C,
        token_weight_T=token_weight_T,
        parts=parts,
        given=divisor is not None,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        predict=predict,
        grad_input=grad_input,
        grad_weight=grad_weight,
        grad_bias=grad_bias,
    )
    if small:
        return triton_small_vocab.linear_cross_entropy(call, max_valid)
    return triton_large_vocab.linear_cross_entropy(call, max_valid)


def scale_gradients_(first: Tensor, second: Tensor, third: Tensor, scale: Tensor) -> None:
    """The operator ``fangyan::scale_gradients_``: contiguous gradients times ``scale``, in place."""
    largest = max(first.numel(), second.numel(), third.numel())
    programs = max(1, min(-(-largest // SCALE["BLOCK"]), 8 * processors(first.device)))
    launch(
        scale_three,
        (programs, 1),
        (first, second, third, scale),
        (first.numel(), second.numel(), third.numel()),
        (),
        SCALE,
    )
