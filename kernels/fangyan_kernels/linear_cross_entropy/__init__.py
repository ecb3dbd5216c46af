"""A linear head and its softmax cross-entropy as one op.

Shape suffixes: T tokens, H hidden, C classes.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from fangyan_kernels import ops
from fangyan_kernels.capability import has_tensor_cores, refuse_bfloat16
from fangyan_kernels.linear_cross_entropy import reference
from fangyan_kernels.ops.linear_cross_entropy import Inputs, Options
from fangyan_kernels.validation import choose_implementation, describe

__all__ = ["Statistics", "linear_cross_entropy", "linear_cross_entropy_with_statistics"]

Implementation = Literal["auto", "reference", "cpp", "triton", "triton_small_vocab", "triton_large_vocab"]
Reduction = Literal["none", "mean", "sum"]
_IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)
_REDUCTIONS: tuple[str, ...] = get_args(Reduction)
_VARIANTS = {"triton_small_vocab": "small_vocab", "triton_large_vocab": "large_vocab"}


class Statistics(NamedTuple):
    """What the pass that computes the loss finds besides.

    Attributes:
        num_valid: targets that are not ``ignore_index``, ``()``, int64.
        num_correct: of them, those whose class has the largest logit, the first of several, ``()``, int64.
        predictions: that class, ``ignore_index`` where the target is, ``(...)``, int64; or None.
    """

    num_valid: Tensor
    num_correct: Tensor
    predictions: Tensor | None


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    token_weight: Tensor | None = None,
    divisor: Tensor | float | None = None,
    gradient_filter: float = 0.0,
    max_valid: int | None = None,
    impl: Implementation = "auto",
) -> Tensor:
    """Compute ``cross_entropy(linear(input, linear_weight, linear_bias), target)`` without the logits.

    The signature and meaning are those of :func:`torch.nn.functional.linear_cross_entropy`, but
    for one case: where every target is ignored, ``mean`` is a zero connected to the graph, not NaN. The
    formula of all options together is in ``reference.py``. Under autocast, input and head are cast
    as ``linear`` casts them.

    The gradients of a reduced loss come from the same pass as the loss, for an upstream gradient of
    1; another costs one more pass over them. So divide by ``divisor`` here, not afterwards. In
    float16 they wait for the upstream gradient, and with it for the loss scale.

    Args:
        input: hidden states, ``(..., H)``, floating point.
        linear_weight: the head's weight, ``(C, H)``, dtype of ``input``.
        target: class indices in [0, C) or ``ignore_index``, ``(...)``, int64.
        linear_bias: the head's bias, ``(C,)``.
        weight: one factor per class, ``(C,)``; ``mean`` then divides by the sum of the targets' factors.
        reduction: ``none`` returns one loss per token, ``(...)``; ``sum`` and ``mean`` a scalar.
        ignore_index: targets equal to it have no loss and no gradient, and cost no matrix work.
        label_smoothing: in [0, 1]; mixes the target with a uniform distribution
            (Szegedy et al. 2015, arXiv 1512.00567).
        z_loss: factor of the squared log-sum-exp (Chowdhery et al. 2022, arXiv 2204.02311), added to
            the loss; class weights do not touch it.
        logit_scale: factor on the logits, bias included, before a softcap: Cohere's ``logit_scale``, or
            one over Granite's ``logits_scaling``. Any finite number.
        softcap: logits become ``softcap * tanh(logits / softcap)`` (Gemma Team 2024, arXiv 2408.00118).
        token_weight: one factor per token, ``(...)``; it enters what ``mean`` divides by.
        divisor: what ``mean`` divides by in place of the targets here, ``()`` or a number: the valid
            tokens of all ranks and accumulation steps, say.
        gradient_filter: leaves out of the gradients' products whatever is smaller, as a fraction of its
            token's weight, for a whole chunk of tokens (after Wijmans et al. 2024, arXiv 2411.09009).
            An element of the gradient of ``input`` is then off by at most this, times its token's
            weight over the divisor, times ``logit_scale``, times the sum of the absolute values of its
            column of ``linear_weight``; one of ``linear_weight`` by at most this times its column of
            ``input``, weighted so, in absolute values. 2**-12 is below what bfloat16 resolves. Implemented by
            ``cpp``; on a GPU it has no effect: the kernels there always compute every product exactly.
        max_valid: a bound of the number of targets that are not ignored, where the caller knows one. Spares
            a GPU the work of a large vocabulary on ignored tokens, without asking the GPU for their number.
            Targets beyond it are lost there: it must not be too small, and a GPU stops with an assertion if
            it is.
        impl: ``reference`` (PyTorch, any device and dtype), ``cpp`` (CPU) and ``triton`` (CUDA; the kernels
            for few or for many classes, or one of them by name) in float32, bfloat16 and float16, or
            ``auto``. A named implementation that cannot run raises.

    Returns:
        The loss, in float32 (float64 for float64 input).

    Raises:
        ValueError: naming the argument, what was found and what was expected: also of bfloat16 on a
            GPU below compute capability 8.0. A target outside [0, C) on a GPU fails there, as a
            device-side assertion, in place of a ValueError.
    """
    loss, _ = _compute(
        input,
        linear_weight,
        target,
        linear_bias=linear_bias,
        weight=weight,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_scale=float(logit_scale),
        softcap=softcap,
        token_weight=token_weight,
        divisor=divisor,
        gradient_filter=gradient_filter,
        max_valid=max_valid,
        impl=impl,
    )
    return loss


def linear_cross_entropy_with_statistics(
    input: Tensor, linear_weight: Tensor, target: Tensor, *, predictions: bool = False, **options: Any
) -> tuple[Tensor, Statistics]:
    """Compute :func:`linear_cross_entropy` and, in the same pass, how many tokens are valid and correct.

    Args:
        input: hidden states, ``(..., H)``.
        linear_weight: the head's weight, ``(C, H)``.
        target: class indices or ``ignore_index``, ``(...)``.
        predictions: whether the likeliest class of each token is wanted too.
        **options: those of :func:`linear_cross_entropy`, by name.

    Returns:
        The loss and the :class:`Statistics`.

    Raises:
        ValueError: as :func:`linear_cross_entropy`.
    """
    defaults = linear_cross_entropy.__kwdefaults__ or {}
    return _compute(input, linear_weight, target, predict=predictions, **{**defaults, **options})


def _compute(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    token_weight: Tensor | None,
    divisor: Tensor | float | None,
    softcap: float | None,
    impl: str,
    predict: bool = False,
    **others: Any,
) -> tuple[Tensor, Statistics]:
    if torch.is_autocast_enabled(input.device.type):
        dtype = torch.get_autocast_dtype(input.device.type)
        input, linear_weight = input.to(dtype), linear_weight.to(dtype)
        linear_bias = None if linear_bias is None else linear_bias.to(dtype)
    _validate_tensors(input, linear_weight, target, linear_bias, weight, token_weight)
    if softcap is not None and not softcap > 0.0:
        raise ValueError(f"softcap is {softcap}, expected None or more than 0")
    options = Options(softcap=float(softcap or 0.0), predict=predict, **others)
    _validate_options(options, divisor)
    chosen = choose_implementation(impl, input, _IMPLEMENTATIONS)
    if not chosen.startswith("triton"):  # whose kernels check: reading the targets would stall a GPU
        _validate_targets(target, linear_weight.shape[0], options.ignore_index)

    wide = torch.promote_types(input.dtype, torch.float32)
    inputs = Inputs(
        # A view would be one more node of the graph, which costs the host 6 us.
        input if input.ndim == 2 else input.reshape(-1, input.shape[-1]),
        linear_weight,
        linear_bias,
        target if target.ndim == 1 else target.reshape(-1),
        None if weight is None else weight.to(wide),
        None if token_weight is None else token_weight.reshape(-1).to(wide),
        _as_tensor(divisor, input.device, wide),
    )
    if chosen == "reference":
        loss, num_valid, num_correct, prediction_T = reference.linear_cross_entropy(inputs, options)
    else:
        refuse_bfloat16(input)
        loss, num_valid, num_correct, prediction_T = _fused(inputs, options, chosen)
    if options.reduction == "none":
        loss = loss.reshape(target.shape)
    predictions = prediction_T.reshape(target.shape) if predict else None
    return loss, Statistics(num_valid, num_correct, predictions)


def _as_tensor(divisor: Tensor | float | None, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    if isinstance(divisor, Tensor):
        divisor = divisor.detach().to(device, dtype)
        return divisor.reshape(()) if divisor.ndim else divisor
    # Filled there: a copy would make the host wait.
    return None if divisor is None else torch.full((), divisor, dtype=dtype, device=device)


def _fused(inputs: Inputs, options: Options, chosen: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Call the operator, which computes the gradients that it can with the loss."""
    variant = _VARIANTS.get(chosen, "auto")
    if chosen == "triton" and not has_tensor_cores(inputs.input_TH.device):
        variant = "large_vocab"  # whose products are cuBLAS's
    # fp16 gradients of a mean underflow before the loss scale is applied: they are deferred.
    deferred = inputs.input_TH.dtype == torch.float16 and torch.is_grad_enabled()
    reduction = "none" if deferred else options.reduction
    leaves = inputs.input_TH, inputs.weight_CH, inputs.bias_C
    # Without a reduction all gradients wait for the upstream gradient.
    early = reduction != "none" and torch.is_grad_enabled()
    wanted = [early and leaf is not None and leaf.requires_grad for leaf in leaves]
    results = ops.linear_cross_entropy.linear_cross_entropy(
        inputs,
        options._replace(
            reduction=reduction,
            variant=variant,
            grad_input=wanted[0],
            grad_weight=wanted[1],
            grad_bias=wanted[2],
        ),
    )
    loss = results.loss
    if reduction != options.reduction:
        loss = reference.reduced(loss, inputs, options)
    return loss, results.num_valid, results.num_correct, results.prediction_T


def _validate_tensors(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    token_weight: Tensor | None,
) -> None:
    if not input.is_floating_point() or input.ndim == 0:
        raise ValueError(f"input is {describe(input)}, expected floating point of shape (..., H)")
    hidden = input.shape[-1]
    if linear_weight.ndim != 2 or linear_weight.shape[1] != hidden:
        raise ValueError(f"linear_weight is {describe(linear_weight)}, expected shape (C, {hidden})")
    if linear_weight.dtype != input.dtype:
        raise ValueError(f"linear_weight is {linear_weight.dtype}, expected input's {input.dtype}")
    classes, tokens = linear_weight.shape[0], input.shape[:-1]
    if target.dtype != torch.int64 or target.shape != tokens:
        raise ValueError(f"target is {describe(target)}, expected int64 of shape {tuple(tokens)}")
    if linear_bias is not None and linear_bias.dtype != input.dtype:
        raise ValueError(f"linear_bias is {linear_bias.dtype}, expected input's {input.dtype}")
    for name, value, shape in (
        ("linear_bias", linear_bias, (classes,)),
        ("weight", weight, (classes,)),
        ("token_weight", token_weight, tokens),
    ):
        if value is not None and value.shape != shape:
            raise ValueError(f"{name} is {describe(value)}, expected shape {tuple(shape)}")
    for name, value in (("weight", weight), ("token_weight", token_weight)):
        if value is not None and value.requires_grad:
            raise ValueError(f"{name} requires a gradient, which this op does not give; expected a constant")
    for name, value in (
        ("linear_weight", linear_weight),
        ("target", target),
        ("linear_bias", linear_bias),
        ("weight", weight),
        ("token_weight", token_weight),
    ):
        if value is not None and value.device != input.device:
            raise ValueError(f"{name} is on {value.device}, expected input's {input.device}")


def _validate_options(options: Options, divisor: Tensor | float | None) -> None:
    if options.reduction not in _REDUCTIONS:
        raise ValueError(f"reduction is {options.reduction!r}, expected one of {', '.join(_REDUCTIONS)}")
    if not 0.0 <= options.label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {options.label_smoothing}, expected a number in [0, 1]")
    if not options.z_loss >= 0.0:
        raise ValueError(f"z_loss is {options.z_loss}, expected 0 or more")
    if not abs(options.logit_scale) < math.inf:  # math.isfinite would break a compiled graph
        raise ValueError(f"logit_scale is {options.logit_scale}, expected a finite number")
    if divisor is not None and options.reduction != "mean":
        raise ValueError(f"divisor is given with reduction={options.reduction!r}, expected 'mean'")
    if isinstance(divisor, Tensor) and divisor.numel() != 1:
        raise ValueError(f"divisor is {describe(divisor)}, expected one number")
    if not 0.0 <= options.gradient_filter < 1.0:
        raise ValueError(f"gradient_filter is {options.gradient_filter}, expected a number in [0, 1)")
    if options.max_valid is not None and options.max_valid < 0:
        raise ValueError(f"max_valid is {options.max_valid}, expected None, 0 or more")


def _validate_targets(target: Tensor, classes: int, ignore_index: int) -> None:
    # Reading the targets would break a compiled graph and stall a GPU.
    if target.device.type == "cpu" and not torch.compiler.is_compiling():
        bad = (target != ignore_index) & ((target < 0) | (target >= classes))
        if bool(bad.any()):
            raise ValueError(
                f"target holds {int(target[bad][0])}, expected a class in [0, {classes}) "
                f"or ignore_index {ignore_index}"
            )
