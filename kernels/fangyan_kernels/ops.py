"""Schema, fake and autograd formula of every operator: the contract between Python and kernels.

The CPU kernels behind these schemas are C++ (``csrc/``, in the extension ``_C``), the CUDA kernels
Triton; the CPU's LoRA linears are PyTorch's own products in another order.

Shape suffixes: T tokens, H hidden, C classes; K in, N out, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from fangyan_kernels import _C  # noqa: F401  (importing it registers the CPU kernels)

# Gives the loss, () or (T) as ``reduction`` has it; the numbers of labelled and of correct tokens;
# with ``predict`` the likeliest class of each token; and, of those asked for, the gradients of the
# reduced loss, from the same pass. What is not asked for is empty.
torch.library.define(
    "fangyan::linear_cross_entropy",
    "(Tensor input_TH, Tensor weight_CH, Tensor? bias_C, Tensor target_T, Tensor? class_weight_C,"
    " Tensor? token_weight_T, Tensor? divisor, str reduction, int ignore_index, float label_smoothing,"
    " float z_loss, float softcap, float gradient_filter, SymInt? max_valid, str variant, bool predict,"
    " bool grad_input, bool grad_weight, bool grad_bias)"
    " -> (Tensor loss, Tensor labelled, Tensor correct, Tensor prediction_T, Tensor grad_input_TH,"
    " Tensor grad_weight_CH, Tensor grad_bias_C)",
)

# Multiplies gradients in place by a number on their device; does nothing, without asking the host,
# where it is 1.
torch.library.define(
    "fangyan::scale_gradients_", "(Tensor(a!) first, Tensor(b!) second, Tensor(c!) third, Tensor scale) -> ()"
)

# Frozen linear layers of one input, each with a low-rank adapter: their outputs, and with ``keep_low`` the
# adapters' (D * x) A' side by side, (T, R), where a back end keeps it for the backward. Biases are none or
# one per layer. ``seed`` is an int64 on the input's device, absent where nothing is dropped; ``scales``,
# ``blocks`` and ``quant_type`` are those of 4-bit weights (lora_linear/base_weights.py), else empty.
_LORA_INPUTS = (
    "Tensor input_TK, Tensor[] weights, Tensor[] biases_N, Tensor[] a_RK, Tensor[] b_NR, float[] scalings,"
    " float dropout, Tensor? seed, Tensor[] scales, int[] blocks, str quant_type"
)
torch.library.define(
    "fangyan::lora_linear", f"({_LORA_INPUTS}, bool keep_low) -> (Tensor[] outputs_TN, Tensor low_TR)"
)

# The gradients of input, of every A, B and bias; what is not wanted is empty. ``low_TR`` is the forward's, or
# empty.
torch.library.define(
    "fangyan::lora_linear_backward",
    f"(Tensor[] grads_TN, {_LORA_INPUTS}, Tensor low_TR, bool wants_input, bool wants_adapters,"
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

# A step of an optimizer with 8-bit or 32-bit states over one tensor, in place: optim8bit/reference.py owns
# the meaning. Returns the number of elements that it left as they were.
torch.library.define(
    "fangyan::optimizer_step_",
    "(str algorithm, Tensor(a!) parameter, Tensor gradient, Tensor(b!) state1, Tensor(c!)? state2,"
    " Tensor(d!)? absmax1, Tensor(e!)? absmax2, Tensor? qmap1, Tensor? qmap2, Tensor(f!)? copy, float lr,"
    " float beta1, float beta2, float beta3, float alpha, float eps, float weight_decay, int step,"
    " float gradient_scale=1.0) -> int",
)

# The sum of the squares of all elements on the CPU, summed in double precision: for the norm of gradients.
torch.library.define("fangyan::sum_of_squares", "(Tensor[] tensors) -> float")


# The overloads, which are called without a search for them.
_linear_cross_entropy = torch.ops.fangyan.linear_cross_entropy.default
_scale_gradients_ = torch.ops.fangyan.scale_gradients_.default


@torch.library.register_fake("fangyan::linear_cross_entropy")
def _linear_cross_entropy_fake(
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
    tokens, hidden = input_TH.shape
    classes = weight_CH.shape[0]
    return (
        input_TH.new_empty(tokens if reduction == "none" else (), dtype=torch.float32),
        target_T.new_empty(()),
        target_T.new_empty(()),
        target_T.new_empty(tokens if predict else 0),
        input_TH.new_empty((tokens, hidden) if grad_input else 0),
        weight_CH.new_empty((classes, hidden) if grad_weight else 0),
        weight_CH.new_empty(classes if grad_bias else 0),
    )


@torch.library.register_fake("fangyan::scale_gradients_")
def _scale_gradients_fake(first: Tensor, second: Tensor, third: Tensor, scale: Tensor) -> None:
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
        rest: tuple[Any, ...],
        others: list[Tensor],
    ) -> Tensor:
        """The loss; ``others`` takes what has no gradient: as results of autograd's they would cost 5 us."""
        loss: Tensor
        loss, *others[:] = _below_autograd(input_TH, weight_CH, bias_C, *rest)
        *tensors, reduction = rest[:5]
        ctx.options = rest[5:12]
        ctx.reduced = reduction != "none"
        ctx.reduction = reduction
        # ZeRO-3 needs the weight itself, not a view of it.
        ctx.save_for_backward(input_TH, weight_CH, bias_C, *tensors, *(others[3:] if ctx.reduced else ()))
        ctx.spent = False
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and type(grad_loss) is Tensor:
            raise RuntimeError(
                "linear_cross_entropy: the gradient of a gradient (create_graph=True) is not implemented by "
                "its kernels, expected impl='reference'"
            )
        saved = ctx.saved_tensors
        inputs, gradients = saved[:7], saved[7:]
        wanted = ctx.needs_input_grad[:3]
        if not ctx.reduced:
            token_weight_T = inputs[5]
            factor_T = grad_loss if token_weight_T is None else grad_loss * token_weight_T
            gradients = _gradients((*inputs[:5], factor_T, None, "sum"), ctx.options, wanted)
        else:
            if ctx.spent:
                gradients = _gradients((*inputs, ctx.reduction), ctx.options, wanted)
            ctx.spent = True
            gradients = _scaled(gradients, grad_loss)
        found = [gradient if want else None for gradient, want in zip(gradients, wanted, strict=True)]
        return (*found, None, None)


def _below_autograd(*arguments: Any) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return _linear_cross_entropy(*arguments)


# Not by register_autograd: at each call it fills in the schema's defaults in a time that grows with the
# square of the 19 arguments, 113 to 143 us.
def _linear_cross_entropy_autograd(
    input_TH: Tensor, weight_CH: Tensor, bias_C: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    leaves = input_TH, weight_CH, bias_C
    if torch.is_grad_enabled() and any(leaf is not None and leaf.requires_grad for leaf in leaves):
        others: list[Tensor] = []
        loss = _LinearCrossEntropy.apply(*leaves, rest, others)
        return loss, *others
    output: tuple[Tensor, ...] = _below_autograd(*leaves, *rest)
    return output


torch.library.impl("fangyan::linear_cross_entropy", "Autograd", _linear_cross_entropy_autograd)


def linear_cross_entropy(*arguments: Any) -> tuple[Tensor, ...]:
    """The operator with its derivative; called eagerly, without the dispatcher's way there, 9 us."""
    if torch.compiler.is_compiling():
        return _linear_cross_entropy(*arguments)
    return _linear_cross_entropy_autograd(*arguments)


def _scaled(gradients: tuple[Tensor, ...], scale: Tensor) -> tuple[Tensor, ...]:
    # A tracer's tensors: what it traces must not write to the forward's results.
    if type(scale) is not Tensor:
        return tuple(gradient * scale for gradient in gradients)
    # They are saved for a backward that will not use them again.
    with _unsafe_preserve_version_counter(gradients):
        _scale_gradients_(*gradients, scale)
    return gradients


def _gradients(
    inputs: tuple[Any, ...], options: tuple[Any, ...], wanted: tuple[bool, ...]
) -> tuple[Tensor, ...]:
    return _linear_cross_entropy(*inputs, *options, False, *wanted)[4:]


# Triton is imported with the first tensor on a GPU.
@torch.library.impl("fangyan::linear_cross_entropy", "CUDA")
def _linear_cross_entropy_cuda(*arguments: Any) -> tuple[Tensor, ...]:
    from fangyan_kernels.linear_cross_entropy import launch

    with torch.cuda.device_of(arguments[0]):  # Triton launches on the current device
        return launch.linear_cross_entropy(*arguments)


@torch.library.impl("fangyan::scale_gradients_", "CUDA")
def _scale_gradients_cuda(*arguments: Any) -> None:
    from fangyan_kernels.linear_cross_entropy import launch

    with torch.cuda.device_of(arguments[0]):
        launch.scale_gradients_(*arguments)


@torch.library.register_fake("fangyan::lora_linear")
def _lora_linear_fake(
    input_TK: Tensor, weights: Any, biases_N: Any, a_RK: Any, b_NR: Any, *rest: Any
) -> tuple[list[Tensor], Tensor]:
    tokens = input_TK.shape[0]
    kept = rest[-1] and input_TK.device.type == "cuda"
    low_TR = input_TK.new_empty((tokens, sum(a.shape[0] for a in a_RK)) if kept else 0)
    return [input_TK.new_empty(tokens, b.shape[0]) for b in b_NR], low_TR


@torch.library.register_fake("fangyan::lora_linear_backward")
def _lora_linear_backward_fake(grads_TN: Any, input_TK: Tensor, *rest: Any) -> Any:
    _, biases_N, a_RK, b_NR, *_, wants_input, wants_adapters, wants_biases = rest
    return (
        torch.empty_like(input_TK) if wants_input else input_TK.new_empty(0),
        [a.new_empty(a.shape) for a in a_RK] if wants_adapters else [],
        [b.new_empty(b.shape) for b in b_NR] if wants_adapters else [],
        [torch.empty_like(bias) for bias in biases_N] if wants_biases else [],
    )


class _LoraLinear(torch.autograd.Function):
    """The operator's derivative. ``register_autograd`` flattens lists as pytrees, which takes 200 us."""

    @staticmethod
    def forward(ctx: Any, counts: list[int], options: tuple[Any, ...], *tensors: Tensor | None) -> Any:
        ctx.counts, ctx.options = counts, options
        # Of A and B; the counts' first two are the input and the seed.
        keep_low = any(ctx.needs_input_grad[2 + sum(counts[:4]) : 2 + sum(counts[:6])])
        with torch._C._AutoDispatchBelowAutograd():
            outputs_TN, low_TR = _lora_call(_split(tensors, counts), options, keep_low)
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
        parts, wants = _split(tensors, ctx.counts), _split(ctx.needs_input_grad[2:], ctx.counts)
        (input_TK,), (seed,), weights, biases_N, a_RK, b_NR, scales = parts
        grads_TN = [
            input_TK.new_zeros(input_TK.shape[0], b.shape[0]) if grad is None else grad
            for grad, b in zip(grads, b_NR, strict=False)  # the last is low's
        ]
        scalings, dropout, blocks, quant_type = ctx.options
        wants_input, wants_biases, wants_a, wants_b = wants[0][0], wants[3], wants[4], wants[5]
        grad_input_TK, grads_a, grads_b, grads_bias = torch.ops.fangyan.lora_linear_backward.default(
            *(grads_TN, input_TK, weights, biases_N, a_RK, b_NR, scalings, dropout, seed, scales, blocks),
            *(quant_type, low_TR, wants_input, any(wants_a) or any(wants_b), any(wants_biases)),
        )
        return (
            *(None, None, grad_input_TK if wants_input else None, None, *[None] * len(weights)),
            *_wanted(grads_bias, wants_biases),
            *_wanted(grads_a, wants_a),
            *_wanted(grads_b, wants_b),
            *[None] * len(scales),
        )


def _split(values: Any, counts: list[int]) -> list[Any]:
    parts, first = [], 0
    for count in counts:
        parts.append(list(values[first : first + count]))
        first += count
    return parts


def _lora_call(parts: list[Any], options: tuple[Any, ...], keep_low: bool) -> Any:
    (input_TK,), (seed,), weights, biases_N, a_RK, b_NR, scales = parts
    scalings, dropout, blocks, quant_type = options
    return torch.ops.fangyan.lora_linear.default(
        input_TK, weights, biases_N, a_RK, b_NR, scalings, dropout, seed, scales, blocks, quant_type, keep_low
    )


def _wanted(gradients: list[Tensor], wants: list[bool]) -> list[Tensor | None]:
    if not gradients:
        return [None] * len(wants)
    return [gradient if want else None for gradient, want in zip(gradients, wants, strict=True)]


@torch.library.impl("fangyan::lora_linear", "Autograd")
def _lora_linear_autograd(
    input_TK: Tensor,
    weights: list[Tensor],
    biases_N: list[Tensor],
    a_RK: list[Tensor],
    b_NR: list[Tensor],
    scalings: list[float],
    dropout: float,
    seed: Tensor | None,
    scales: list[Tensor],
    blocks: list[int],
    quant_type: str,
    keep_low: bool,
) -> tuple[list[Tensor], Tensor]:
    parts: list[Any] = [[input_TK], [seed], weights, biases_N, a_RK, b_NR, scales]
    tensors = (input_TK, seed, *weights, *biases_N, *a_RK, *b_NR, *scales)
    options = scalings, dropout, blocks, quant_type
    if not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in tensors):
        with torch._C._AutoDispatchBelowAutograd():
            return _lora_call(parts, options, keep_low)
    *outputs_TN, low_TR = _LoraLinear.apply([len(part) for part in parts], options, *tensors)
    return outputs_TN, low_TR


@torch.library.impl("fangyan::lora_linear", "CPU")
def _lora_linear_cpu(*arguments: Any) -> Any:
    from fangyan_kernels.lora_linear import matmuls

    return matmuls.forward(*arguments)


@torch.library.impl("fangyan::lora_linear_backward", "CPU")
def _lora_linear_backward_cpu(*arguments: Any) -> Any:
    from fangyan_kernels.lora_linear import matmuls

    return matmuls.backward(*arguments)


@torch.library.impl("fangyan::lora_linear", "CUDA")
def _lora_linear_cuda(*arguments: Any) -> Any:
    from fangyan_kernels.lora_linear import launch

    with torch.cuda.device_of(arguments[0]):
        return launch.forward(*arguments)


@torch.library.impl("fangyan::lora_linear_backward", "CUDA")
def _lora_linear_backward_cuda(*arguments: Any) -> Any:
    from fangyan_kernels.lora_linear import launch

    with torch.cuda.device_of(arguments[1]):
        return launch.backward(*arguments)


# Attention within each of the sequences that ``offsets`` bound; ``left`` and ``right`` are how many tokens
# around itself a token sees, -1 for all. H heads, G heads of keys and values, D numbers a head.
_ATTENTION_INPUTS = (
    "Tensor query_THD, Tensor key_TGD, Tensor value_TGD, Tensor offsets, int left, int right, float scale"
)
torch.library.define("fangyan::varlen_attention", f"({_ATTENTION_INPUTS}) -> Tensor")
torch.library.define(
    "fangyan::varlen_attention_backward",
    f"(Tensor grad_THD, {_ATTENTION_INPUTS}) -> (Tensor, Tensor, Tensor)",
)


@torch.library.register_fake("fangyan::varlen_attention")
def _varlen_attention_fake(query_THD: Tensor, *_: Any) -> Tensor:
    return query_THD.new_empty(query_THD.shape)


@torch.library.register_fake("fangyan::varlen_attention_backward")
def _varlen_attention_backward_fake(
    grad_THD: Tensor, query_THD: Tensor, key_TGD: Tensor, value_TGD: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (tensor.new_empty(tensor.shape) for tensor in (query_THD, key_TGD, value_TGD))
    return query, key, value


def _varlen_attention_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _varlen_attention_backward(ctx: Any, grad_THD: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled() and type(grad_THD) is Tensor:
        raise RuntimeError(
            "varlen_attention: the gradient of a gradient (create_graph=True) is not implemented by its "
            "kernels, expected impl='reference'"
        )
    gradients = torch.ops.fangyan.varlen_attention_backward(grad_THD, *ctx.saved_tensors, *ctx.options)
    return (*gradients, None, None, None, None)


torch.library.register_autograd(
    "fangyan::varlen_attention", _varlen_attention_backward, setup_context=_varlen_attention_setup
)


def _without_autocast(name: str) -> None:
    """An operator's own products and sums are in the dtypes it was given: autocast ends where it begins.

    A kernel of autocast's own key costs nothing while autocast is off, and is on the way of the backward and
    of inference mode too. What is cast, public functions cast.
    """
    operator = getattr(torch.ops.fangyan, name).default

    def kernel(*arguments: Any) -> Any:
        with torch._C._DisableAutocast():
            return operator(*arguments)

    for key in ("AutocastCPU", "AutocastCUDA"):
        torch.library.impl(f"fangyan::{name}", key, kernel)


for _name in (
    "linear_cross_entropy",
    "lora_linear",
    "lora_linear_backward",
    "varlen_attention",
    "varlen_attention_backward",
):
    _without_autocast(_name)
