"""Inputs of linear cross-entropy, and the check of every implementation against float64."""

import math

import pytest
import torch
import torch.nn.functional as F
import triton_here
from fangyan_kernels import linear_cross_entropy
from fangyan_kernels.testing.error_budget import assert_within_error_budget

IMPLEMENTATIONS = ["reference", "cpp", "triton_small_vocab", "triton_large_vocab"]
IGNORE = -100
MAX_CLASSES = {torch.float32: 16, torch.bfloat16: 32, torch.float16: 32}  # of triton_small_vocab

# All of them together: a mistake in one term is not hidden by another that is zero.
OPTIONS = {"label_smoothing": 0.1, "z_loss": 1e-2, "logit_scale": 0.25, "softcap": 15.0}


def implementations(*names):
    return pytest.mark.parametrize("impl", names or IMPLEMENTATIONS, indirect=True)


def device(impl):
    return triton_here.DEVICE if "triton" in impl else "cpu"


def make(impl, tokens, hidden, classes, seed=0, dtype=torch.float32, ignored=0.3, scale=1.0):
    if impl == "triton_small_vocab":
        classes = min(classes, MAX_CLASSES[dtype])
    generator = torch.Generator().manual_seed(seed)
    input = torch.randn(tokens, hidden, generator=generator, dtype=torch.float64) * scale
    weight = torch.randn(classes, hidden, generator=generator, dtype=torch.float64)
    bias = torch.randn(classes, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, (tokens,), generator=generator)
    target[torch.rand(tokens, generator=generator) < ignored] = IGNORE
    leaves = [tensor.to(device(impl), dtype).requires_grad_() for tensor in (input, weight, bias)]
    return *leaves, target.to(device(impl))


def weights(case):
    """A factor a class and a factor a token."""
    classes, tokens = case[1].shape[0], case[0].shape[0]
    options = {"dtype": torch.float64, "device": case[0].device}
    return {
        "weight": torch.linspace(0.5, 1.5, classes, **options),
        "token_weight": torch.linspace(0.2, 2.0, tokens, **options),
    }


def with_gradients(function, input, weight, bias, target, /, **options):
    loss = function(input, weight, target, linear_bias=bias, **options)
    upstream = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype, device=loss.device)
    return loss, *torch.autograd.grad(loss, (input, weight, bias), upstream.reshape(loss.shape))


def plain(
    input,
    head,
    target,
    *,
    linear_bias,
    z_loss=0.0,
    logit_scale=1.0,
    softcap=None,
    token_weight=None,
    **options,
):
    """The expression in plain PyTorch; the product in its input's dtype, as a model computes it."""
    logits = F.linear(input, head, linear_bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = logits * logit_scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    reduction, factor = options.pop("reduction", "mean"), options.pop("weight", None)
    factor = None if factor is None else factor.to(logits.dtype)
    loss = F.cross_entropy(logits, target, reduction="none", weight=factor, **options)
    labelled = (target != IGNORE).to(loss.dtype)
    loss = loss + z_loss * labelled * logits.logsumexp(1) ** 2
    total = labelled if factor is None else labelled * factor[target.clamp(min=0)]
    if token_weight is not None:
        loss, total = loss * token_weight.to(loss.dtype), total * token_weight.to(loss.dtype)
    if reduction == "mean":
        return loss.sum() / total.sum()
    return loss.sum() if reduction == "sum" else loss


def check_against_truth(impl, case, found=None, /, **options):
    """Check the loss and gradients of an implementation, or those found by it."""
    doubles = [tensor.detach().double().requires_grad_() for tensor in case[:3]]
    truth = with_gradients(plain, *doubles, case[3], **options)
    same_dtype = with_gradients(plain, *case, **options)
    found = found or with_gradients(linear_cross_entropy, *case, impl=impl, **options)
    scales = term_sizes(*doubles, case[3], options, case[0].dtype)
    names = ("loss", "input", "weight", "bias")
    for name, *values, size in zip(names, found, same_dtype, truth, scales, strict=True):
        assert_within_error_budget(*values, f"{impl} {name}", case[0].dtype, size)


@torch.no_grad()
def term_sizes(input, weight, bias, target, options, dtype):
    """The largest sum of absolute terms behind an element of the loss and of each gradient.

    A rounding step is relative to the terms and not to their sum: logits cancel in the loss, and a
    probability near 1 cancels with the target in its gradient.
    """
    scale, softcap = options.get("logit_scale", 1.0), options.get("softcap")
    values = scale * F.linear(input, weight, bias)
    probabilities = (values if softcap is None else softcap * torch.tanh(values / softcap)).softmax(1)
    logits = abs(scale) * F.linear(input.abs(), weight.abs(), bias.abs())
    logsumexp = logits.amax(1, keepdim=True) + math.log(len(weight))  # at most
    mean = (probabilities * logits).sum(1, keepdim=True)
    steps = torch.zeros_like(logits)
    if dtype == torch.float32:
        # Logits are rounded too, in float32 whatever the dtype: softmax's Jacobian takes their step, which is
        # relative to logits of 27, into every probability.
        steps = probabilities * ((1 - 2 * probabilities) * logits + mean)
    labelled = target != IGNORE
    terms = probabilities + steps + options.get("label_smoothing", 0.0) / len(weight)
    terms[labelled, target[labelled]] += 1.0
    z_loss = options.get("z_loss", 0.0)
    terms += 2 * z_loss * (logsumexp * (probabilities + steps) + probabilities * mean)
    most = max((float(value.max()) for name, value in options.items() if "weight" in name), default=1.0) ** 2
    total = labelled.sum().clamp(min=1) if options.get("reduction", "mean") == "mean" else 1
    terms = terms * abs(scale) * 1.5 * most * labelled[:, None] / total
    sizes = logsumexp[:, 0] * labelled * most
    sizes = sizes + 2 * z_loss * sizes**2  # a square has twice the relative step of its argument
    return (
        sizes.amax() if options.get("reduction") == "none" else sizes.sum() / total,
        (terms @ weight.abs()).amax(),
        (terms.T @ input.abs()).amax(),
        terms.sum(0).amax(),
    )
