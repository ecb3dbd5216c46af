"""Schema, fake and autograd formula of linear cross-entropy.

Shape suffixes: T tokens, H hidden, C classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter


class Inputs(NamedTuple):
    """The operator's tensors, in the order of its schema; what they mean is in ``reference.py``."""

    input_TH: Tensor
    weight_CH: Tensor
    bias_C: Tensor | None
    target_T: Tensor
    class_weight_C: Tensor | None
    token_weight_T: Tensor | None
    divisor: Tensor | None


class Options(NamedTuple):
    """The operator's other arguments, in the order of its schema.

    Attributes:
        reduction: ``none``, ``sum`` or ``mean``.
        ignore_index: target of tokens without a loss.
        label_smoothing: share of the target that is uniform over the classes.
        z_loss: factor of the squared log-sum-exp.
        logit_scale: factor on the logits, before the softcap.
        softcap: bound of the logits; 0 for none.
        gradient_filter: bound of what is left out of the gradients' products; 0 for none.
        max_valid: bound of the number of targets that are not ignored, where the host knows one.
        variant: ``auto``, ``small_vocab`` or ``large_vocab``.
        predict: whether the likeliest class of each token is wanted.
        grad_input: whether the gradient of the input is wanted; likewise the others.
    """

    reduction: str
    ignore_index: int
    label_smoothing: float
    z_loss: float
    logit_scale: float
    softcap: float
    gradient_filter: float = 0.0
    max_valid: int | None = None
    variant: str = "auto"
    predict: bool = False
    grad_input: bool = False
    grad_weight: bool = False
    grad_bias: bool = False


class Results(NamedTuple):
    """What the operator returns; gradients that are not wanted, and predictions, are empty.

    Attributes:
        loss: ``()``, or ``(T,)`` without a reduction.
        num_valid: targets that are not ignored, int64.
        num_correct: of them, those whose class has the largest logit, int64.
        prediction_T: the likeliest class, ``ignore_index`` where the target is.
        grad_input_TH: of the reduced loss, from the same pass.
        grad_weight_CH: likewise.
        grad_bias_C: likewise.
    """

    loss: Tensor
    num_valid: Tensor
    num_correct: Tensor
    prediction_T: Tensor
    grad_input_TH: Tensor
    grad_weight_CH: Tensor
    grad_bias_C: Tensor


torch.library.define(
    "fangyan::linear_cross_entropy",
    "(Tensor input_TH, Tensor weight_CH, Tensor? bias_C, Tensor target_T, Tensor? class_weight_C,"
    " Tensor? token_weight_T, Tensor? divisor, str reduction, int ignore_index, float label_smoothing,"
    " float z_loss, float logit_scale, float softcap, float gradient_filter, SymInt? max_valid, str variant,"
    " bool predict, bool grad_input, bool grad_weight, bool grad_bias)"
    " -> (Tensor loss, Tensor num_valid, Tensor num_correct, Tensor prediction_T, Tensor grad_input_TH,"
    " Tensor grad_weight_CH, Tensor grad_bias_C)",
)

# Multiplies gradients in place by a number on their device; does nothing, without asking the host,
# where it is 1.
torch.library.define(
    "fangyan::scale_gradients_", "(Tensor(a!) first, Tensor(b!) second, Tensor(c!) third, Tensor scale) -> ()"
)

# The overloads, which are called without a search for them.
_operator = torch.ops.fangyan.linear_cross_entropy.default
_scale_gradients_ = torch.ops.fangyan.scale_gradients_.default


def split(arguments: tuple[Any, ...]) -> tuple[Inputs, Options]:
    """Name the operator's arguments."""
    count = len(Inputs._fields)
    return Inputs(*arguments[:count]), Options(*arguments[count:])


@torch.library.register_fake("fangyan::linear_cross_entropy")
def _fake(*arguments: Any) -> Results:
    inputs, options = split(arguments)
    (tokens, hidden), classes = inputs.input_TH.shape, inputs.weight_CH.shape[0]
    return Results(
        inputs.input_TH.new_empty(tokens if options.reduction == "none" else (), dtype=torch.float32),
        inputs.target_T.new_empty(()),
        inputs.target_T.new_empty(()),
        inputs.target_T.new_empty(tokens if options.predict else 0),
        inputs.input_TH.new_empty((tokens, hidden) if options.grad_input else 0),
        inputs.weight_CH.new_empty((classes, hidden) if options.grad_weight else 0),
        inputs.weight_CH.new_empty(classes if options.grad_bias else 0),
    )


@torch.library.register_fake("fangyan::scale_gradients_")
def _scale_gradients_fake(*_: Tensor) -> None:
    return None


class _LinearCrossEntropy(torch.autograd.Function):
    """Scales the gradients of the forward; computes them where the forward could not, or not again.

    Without a reduction they depend on every token's upstream gradient. Those of the forward are
    scaled in place, once: a second backward through the same graph computes its own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input_TH: Tensor,
        weight_CH: Tensor,
        bias_C: Tensor | None,
        others: tuple[Any, ...],
        options: Options,
        statistics: list[Tensor],
    ) -> Tensor:
        """Return the loss; ``others`` are the inputs without a gradient.

        What has no gradient goes into ``statistics``: as results of this function they would cost 5 us.
        """
        inputs = Inputs(input_TH, weight_CH, bias_C, *others)
        with torch._C._AutoDispatchBelowAutograd():
            results = Results(*_operator(*inputs, *options))
        statistics[:] = results[1:]
        gradients = results.grad_input_TH, results.grad_weight_CH, results.grad_bias_C
        ctx.options = options
        # ZeRO-3 needs the weight itself, not a view of it.
        ctx.save_for_backward(*inputs, *(gradients if options.reduction != "none" else ()))
        ctx.scaled = False
        return results.loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and type(grad_loss) is Tensor:
            raise RuntimeError(
                "linear_cross_entropy: the gradient of a gradient (create_graph=True) is not implemented by "
                "its kernels, expected impl='reference'"
            )
        options: Options = ctx.options
        saved, count = ctx.saved_tensors, len(Inputs._fields)  # unpacked once: activation checkpointing
        inputs, gradients = Inputs(*saved[:count]), saved[count:]
        wanted = ctx.needs_input_grad[:3]
        if options.reduction == "none":
            weight_T = inputs.token_weight_T
            weight_T = grad_loss if weight_T is None else grad_loss * weight_T
            inputs = inputs._replace(token_weight_T=weight_T, divisor=None)
            gradients = _gradients(inputs, options._replace(reduction="sum"), wanted)
        else:
            if ctx.scaled:
                gradients = _gradients(inputs, options, wanted)
            ctx.scaled = True
            gradients = _scaled(gradients, grad_loss)
        found = [gradient if want else None for gradient, want in zip(gradients, wanted, strict=True)]
        return (*found, None, None, None)


def _gradients(inputs: Inputs, options: Options, wanted: tuple[bool, bool, bool]) -> tuple[Tensor, ...]:
    """Compute the gradients of a reduced loss in a pass of its own."""
    grad_input, grad_weight, grad_bias = wanted
    options = options._replace(
        predict=False, grad_input=grad_input, grad_weight=grad_weight, grad_bias=grad_bias
    )
    results = Results(*_operator(*inputs, *options))
    return results.grad_input_TH, results.grad_weight_CH, results.grad_bias_C


def _scaled(gradients: tuple[Tensor, ...], scale: Tensor) -> tuple[Tensor, ...]:
    # A tracer's tensors: what it traces must not write to the forward's results.
    if type(scale) is not Tensor:
        return tuple(gradient * scale for gradient in gradients)
    # They are saved for a backward that will not use them again.
    with _unsafe_preserve_version_counter(gradients):
        _scale_gradients_(*gradients, scale)
    return gradients


# Not by register_autograd: at each call it fills in the schema's defaults in a time that grows with the
# square of their number, of 19 arguments 113 to 143 us.
def _autograd(*arguments: Any) -> Results:
    inputs, options = split(arguments)
    leaves = inputs.input_TH, inputs.weight_CH, inputs.bias_C
    if torch.is_grad_enabled() and any(leaf is not None and leaf.requires_grad for leaf in leaves):
        statistics: list[Tensor] = []
        loss = _LinearCrossEntropy.apply(*leaves, inputs[len(leaves) :], options, statistics)
        return Results(loss, *statistics)
    with torch._C._AutoDispatchBelowAutograd():
        return Results(*_operator(*arguments))


torch.library.impl("fangyan::linear_cross_entropy", "Autograd", _autograd)


def linear_cross_entropy(inputs: Inputs, options: Options) -> Results:
    """Call the operator with its derivative; eagerly without the dispatcher's way there, 9 us."""
    if torch.compiler.is_compiling():
        return Results(*_operator(*inputs, *options))
    return _autograd(*inputs, *options)


# Triton is imported with the first tensor on a GPU.
@torch.library.impl("fangyan::linear_cross_entropy", "CUDA")
def _cuda(*arguments: Any) -> tuple[Tensor, ...]:
    from fangyan_kernels.linear_cross_entropy import launch

    with torch.cuda.device_of(arguments[0]):  # Triton launches on the current device
        return launch.linear_cross_entropy(*arguments)


@torch.library.impl("fangyan::scale_gradients_", "CUDA")
def _scale_gradients_cuda(*arguments: Any) -> None:
    from fangyan_kernels.linear_cross_entropy import launch

    with torch.cuda.device_of(arguments[0]):
        launch.scale_gradients_(*arguments)
