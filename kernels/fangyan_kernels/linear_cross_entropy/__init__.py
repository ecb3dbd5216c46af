"""A linear head and its softmax cross-entropy as one op.

Shape suffixes: T tokens, H hidden, C classes.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from fangyan_kernels import ops
from fangyan_kernels.capability import has_tensor_cores, refuse_bfloat16
from fangyan_kernels.linear_cross_entropy import reference

__all__ = ["Statistics", "linear_cross_entropy"]

Implementation = Literal["auto", "reference", "cpp", "triton", "triton_small_vocab", "triton_large_vocab"]
Reduction = Literal["none", "mean", "sum"]
_IMPLEMENTATIONS = ("auto", "reference", "cpp", "triton", "triton_small_vocab", "triton_large_vocab")
_REDUCTIONS = ("none", "mean", "sum")
_STATISTICS = ("none", "counts", "predictions")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Statistics(NamedTuple):
    """What the pass that computes the loss knows besides.

    Attributes:
        num_valid: targets that are not ``ignore_index``, ``()``, int64.
        num_correct: of them, those whose class has the largest logit, the first of several, ``()``, int64.
        predictions: that class, ``ignore_index`` where the target is, ``(...)``, int64; None unless
            ``statistics="predictions"``.
    """

    num_valid: Tensor
    num_correct: Tensor
    predictions: Tensor | None


@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = ...,
    weight: Tensor | None = ...,
    reduction: Reduction = ...,
    ignore_index: int = ...,
    label_smoothing: float = ...,
    z_loss: float = ...,
    softcap: float | None = ...,
    token_weight: Tensor | None = ...,
    divisor: Tensor | float | None = ...,
    gradient_filter: float = ...,
    max_valid: int | None = ...,
    statistics: Literal["none"] = ...,
    impl: Implementation = ...,
) -> Tensor: ...


@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = ...,
    weight: Tensor | None = ...,
    reduction: Reduction = ...,
    ignore_index: int = ...,
    label_smoothing: float = ...,
    z_loss: float = ...,
    softcap: float | None = ...,
    token_weight: Tensor | None = ...,
    divisor: Tensor | float | None = ...,
    gradient_filter: float = ...,
    max_valid: int | None = ...,
    statistics: Literal["counts", "predictions"],
    impl: Implementation = ...,
) -> tuple[Tensor, Statistics]: ...


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
    softcap: float | None = None,
    token_weight: Tensor | None = None,
    divisor: Tensor | float | None = None,
    gradient_filter: float = 0.0,
    max_valid: int | None = None,
    statistics: Literal["none", "counts", "predictions"] = "none",
    impl: Implementation = "auto",
) -> Tensor | tuple[Tensor, Statistics]:
    """``cross_entropy(linear(input, linear_weight, linear_bias), target)``, without the logits.

    The signature and meaning are those of :func:`torch.nn.functional.linear_cross_entropy`, but
    for one case: when no target counts, ``mean`` is a zero connected to the graph, not NaN. The
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
        weight: a factor a class, ``(C,)``; ``mean`` then divides by the sum of the targets' factors.
        reduction: ``none`` gives a loss a token, ``(...)``; ``sum`` and ``mean`` a scalar.
        ignore_index: targets equal to it give no loss and no gradient, and cost no matrix work.
        label_smoothing: in [0, 1]; mixes the target with a uniform distribution
            (Szegedy et al. 2015, arXiv 1512.00567).
        z_loss: factor of the squared log-sum-exp (Chowdhery et al. 2022, arXiv 2204.02311), added to
            the loss; class weights do not touch it.
        softcap: logits become ``softcap * tanh(logits / softcap)`` (Gemma Team 2024, arXiv 2408.00118).
        token_weight: a factor a token, ``(...)``; it enters what ``mean`` divides by.
        divisor: what ``mean`` divides by in place of the targets here, ``()`` or a number: the labels
            of all ranks and accumulation steps, say.
        gradient_filter: leaves out of the gradients' products what is smaller, in a fraction of its
            token's weight, for a whole chunk of tokens (after Wijmans et al. 2024, arXiv 2411.09009).
            An element of the gradient of ``input`` is then off by at most this, times its token's
            weight over the divisor, times the sum of the absolute values of its column of
            ``linear_weight``; one of ``linear_weight`` by at most this times its column of ``input``,
            weighted so, in absolute values. 2**-12 is below what bfloat16 resolves. Implemented by
            ``cpp``; on a GPU it has no effect: the kernels there always compute every product exactly.
        max_valid: how many targets are not ignored, at most, where the caller knows it. Spares a
            GPU the vocabulary's work on ignored tokens, without asking the GPU for their number. Labels
            beyond it are lost there: it must not be too small, and a GPU stops with an assertion if it is.
        statistics: ``counts`` also returns how many tokens are labelled and correct, ``predictions``
            their classes too.
        impl: ``reference`` (PyTorch, any device and dtype), ``cpp`` (CPU) and ``triton`` (CUDA; tags or
            vocabulary by the number of classes, or named) in float32, bfloat16 and float16, or
            ``auto``. A named implementation that cannot run raises.

    Returns:
        The loss, in float32 (float64 for float64 input), and the :class:`Statistics` if asked for.

    Raises:
        ValueError: naming the argument, what was found and what was expected: also of bfloat16 on a
            GPU below compute capability 8.0. A target outside [0, C) on a GPU fails there, as a
            device-side assertion, in place of a ValueError.
    """
    if torch.is_autocast_enabled(input.device.type):
        dtype = torch.get_autocast_dtype(input.device.type)
        input, linear_weight = input.to(dtype), linear_weight.to(dtype)
        linear_bias = None if linear_bias is None else linear_bias.to(dtype)
    _validate_tensors(input, linear_weight, target, linear_bias, weight, token_weight)
    _validate_options(reduction, label_smoothing, z_loss, softcap, divisor, gradient_filter, max_valid)
    if statistics not in _STATISTICS:
        raise ValueError(f"statistics is {statistics!r}, expected one of {', '.join(_STATISTICS)}")
    chosen = _choose(impl, input)
    if not chosen.startswith("triton"):  # whose kernels check: reading the targets would stall a GPU
        _validate_targets(target, linear_weight.shape[0], ignore_index)
    if chosen != "reference":
        refuse_bfloat16(input)
    if chosen == "triton_auto" and not has_tensor_cores(input.device):
        chosen = "triton_large_vocab"  # whose products are cuBLAS's

    wide = torch.promote_types(input.dtype, torch.float32)
    if isinstance(divisor, Tensor):
        divisor = divisor.detach().to(input.device, wide)
        divisor = divisor.reshape(()) if divisor.ndim else divisor
    elif divisor is not None:  # filled there: a copy would make the host wait
        divisor = torch.full((), divisor, dtype=wide, device=input.device)
    tensors = (
        # A view would be one more node of the graph, which costs the host 6 us.
        input if input.ndim == 2 else input.reshape(-1, input.shape[-1]),
        linear_weight,
        linear_bias,
        target if target.ndim == 1 else target.reshape(-1),
        None if weight is None else weight.to(wide),
        None if token_weight is None else token_weight.reshape(-1).to(wide),
        divisor,
    )
    # A float16 gradient of a mean is too small for its dtype until a loss scale has come down from above.
    late = input.dtype == torch.float16 and reduction != "none" and torch.is_grad_enabled()
    reduce = "none" if late and chosen != "reference" else reduction
    options = (reduce, ignore_index, float(label_smoothing), float(z_loss), float(softcap or 0.0))
    predict = statistics == "predictions"
    if chosen == "reference":
        loss, labelled, correct, predictions = reference.linear_cross_entropy(*tensors, *options, predict)
    else:
        variant = chosen.removeprefix("triton_") if chosen != "cpp" else "auto"
        wanted = _wanted_gradients(reduce, input, linear_weight, linear_bias)
        loss, labelled, correct, predictions, *_ = ops.linear_cross_entropy(
            *tensors, *options, float(gradient_filter), max_valid, variant, predict, *wanted
        )
        if reduce != reduction:
            loss = reference.reduced(loss, reduction, *tensors[3:], ignore_index)
    if reduction == "none":
        loss = loss.reshape(target.shape)
    if statistics == "none":
        return loss
    return loss, Statistics(labelled, correct, predictions.reshape(target.shape) if predict else None)


def _choose(impl: str, input: Tensor) -> str:
    """The implementation that runs: no named one is ever replaced by another."""
    if impl not in _IMPLEMENTATIONS:
        raise ValueError(f"impl is {impl!r}, expected one of {', '.join(_IMPLEMENTATIONS)}")
    device, fits = input.device.type, input.dtype in _DTYPES
    if impl == "auto":
        by_device = {"cpu": "cpp", "cuda": "triton_auto"}
        return by_device.get(device, "reference") if fits else "reference"
    if impl == "reference":
        return impl
    needed = "cpu" if impl == "cpp" else "cuda"
    if device != needed or not fits:
        raise ValueError(
            f"impl={impl!r} takes float32, bfloat16 and float16 on {needed}, "
            f"input is {input.dtype} on {device}"
        )
    return "triton_auto" if impl == "triton" else impl


def _wanted_gradients(reduction: str, *leaves: Tensor | None) -> tuple[bool, bool, bool]:
    """Which gradients the forward computes; without a reduction they have to wait for the backward."""
    early = reduction != "none" and torch.is_grad_enabled()
    first, second, third = (early and leaf is not None and leaf.requires_grad for leaf in leaves)
    return first, second, third


def _validate_tensors(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    token_weight: Tensor | None,
) -> None:
    if not input.is_floating_point() or input.ndim == 0:
        raise ValueError(f"input is {_describe(input)}, expected floating point of shape (..., H)")
    hidden = input.shape[-1]
    if linear_weight.ndim != 2 or linear_weight.shape[1] != hidden:
        raise ValueError(f"linear_weight is {_describe(linear_weight)}, expected shape (C, {hidden})")
    if linear_weight.dtype != input.dtype:
        raise ValueError(f"linear_weight is {linear_weight.dtype}, expected input's {input.dtype}")
    classes, tokens = linear_weight.shape[0], input.shape[:-1]
    if target.dtype != torch.int64 or target.shape != tokens:
        raise ValueError(f"target is {_describe(target)}, expected int64 of shape {tuple(tokens)}")
    if linear_bias is not None and linear_bias.dtype != input.dtype:
        raise ValueError(f"linear_bias is {linear_bias.dtype}, expected input's {input.dtype}")
    for name, value, shape in (
        ("linear_bias", linear_bias, (classes,)),
        ("weight", weight, (classes,)),
        ("token_weight", token_weight, tokens),
    ):
        if value is not None and value.shape != shape:
            raise ValueError(f"{name} is {_describe(value)}, expected shape {tuple(shape)}")
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


def _validate_options(
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    divisor: Any,
    gradient_filter: float,
    max_valid: int | None,
) -> None:
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}, expected one of {', '.join(_REDUCTIONS)}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}, expected a number in [0, 1]")
    if not z_loss >= 0.0:
        raise ValueError(f"z_loss is {z_loss}, expected 0 or more")
    if softcap is not None and not softcap > 0.0:
        raise ValueError(f"softcap is {softcap}, expected None or more than 0")
    if divisor is not None and reduction != "mean":
        raise ValueError(f"divisor is given with reduction={reduction!r}, expected 'mean'")
    if isinstance(divisor, Tensor) and divisor.numel() != 1:
        raise ValueError(f"divisor is {_describe(divisor)}, expected one number")
    if not 0.0 <= gradient_filter < 1.0:
        raise ValueError(f"gradient_filter is {gradient_filter}, expected a number in [0, 1)")
    if max_valid is not None and max_valid < 0:
        raise ValueError(f"max_valid is {max_valid}, expected None, 0 or more")


def _validate_targets(target: Tensor, classes: int, ignore_index: int) -> None:
    # Reading the targets would break a compiled graph and stall a GPU.
    if target.device.type == "cpu" and not torch.compiler.is_compiling():
        bad = (target != ignore_index) & ((target < 0) | (target >= classes))
        if bool(bad.any()):
            raise ValueError(
                f"target holds {int(target[bad][0])}, expected a class in [0, {classes}) "
                f"or ignore_index {ignore_index}"
            )


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"
