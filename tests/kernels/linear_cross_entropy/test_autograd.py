"""Linear cross-entropy under autograd, autocast, checkpointing and torch.compile."""

import pytest
import torch
import torch.nn.functional as F
import triton_here
from cross_entropy_cases import (
    IGNORE,
    IMPLEMENTATIONS,
    OPTIONS,
    implementations,
    make,
    weights,
    with_gradients,
)
from fangyan_kernels import linear_cross_entropy

FUSED = IMPLEMENTATIONS[1:]


@implementations(*FUSED)
def test_linear_cross_entropy_with_another_upstream_gradient_and_a_second_backward(impl):
    input, weight, bias, target = make(impl, 30, 16, 6)
    leaves = (input, weight, bias)
    loss = linear_cross_entropy(input, weight, target, linear_bias=bias, impl=impl)
    first = torch.autograd.grad(loss, leaves, torch.full_like(loss, -2.5), retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    second = torch.autograd.grad(loss, leaves, retain_graph=True)
    third = torch.autograd.grad(loss, leaves, torch.full_like(loss, 4.0))
    for scaled, single, again, copy in zip(first, second, third, kept, strict=True):
        assert torch.equal(scaled, copy)  # what was handed out is left alone
        torch.testing.assert_close(scaled, -2.5 * single, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(again, 4.0 * single, rtol=1e-6, atol=1e-8)


@implementations(*FUSED)
def test_linear_cross_entropy_refuses_a_second_derivative(impl):
    input, weight, _, target = make(impl, 8, 6, 4)
    loss = linear_cross_entropy(input, weight, target, impl=impl)
    with pytest.raises(RuntimeError, match="create_graph=True.* expected impl='reference'"):
        torch.autograd.grad(loss, input, create_graph=True)


@implementations()
def test_linear_cross_entropy_defers_float16_gradients(impl):
    """Of a mean over many tokens most elements are less than the smallest float16."""
    input, weight, bias, target = make(impl, 600, 8, 40, dtype=torch.float16, scale=0.1)
    loss = linear_cross_entropy(input, weight, target, linear_bias=bias, divisor=1e6, impl=impl)
    doubles = [leaf.detach().double().requires_grad_() for leaf in (input, weight, bias)]
    truth = linear_cross_entropy(*doubles[:2], target, linear_bias=doubles[2], divisor=1e6, impl="reference")
    found = torch.autograd.grad(loss, (input, weight, bias), torch.full_like(loss, 2.0**16))
    expected = torch.autograd.grad(truth, doubles, torch.full_like(truth, 2.0**16))
    for left, right in zip(found, expected, strict=True):
        assert (left.double() - right).norm() < 5e-3 * right.norm()


@implementations(*FUSED)
@pytest.mark.parametrize("frozen", ["input", "weight", "bias"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_linear_cross_entropy_with_frozen_inputs(impl, frozen, reduction):
    names = ("input", "weight", "bias")
    case = make(impl, 30, 16, 6)
    full = with_gradients(linear_cross_entropy, *case, impl=impl, reduction=reduction)[1:]
    tensors = {name: t.detach().requires_grad_(name != frozen) for name, t in zip(names, case, strict=False)}
    loss = linear_cross_entropy(
        tensors["input"],
        tensors["weight"],
        case[3],
        linear_bias=tensors["bias"],
        impl=impl,
        reduction=reduction,
    )
    upstream = torch.linspace(0.5, 1.5, loss.numel(), device=loss.device).reshape(loss.shape)
    loss.backward(upstream)
    for name, expected in zip(names, full, strict=True):
        if name == frozen:
            assert tensors[name].grad is None
        else:
            torch.testing.assert_close(tensors[name].grad, expected, rtol=1e-6, atol=1e-7)


@implementations(*FUSED)
def test_linear_cross_entropy_without_gradients(impl):
    input, weight, bias, target = make(impl, 30, 16, 6)
    expected = linear_cross_entropy(input, weight, target, linear_bias=bias, impl=impl)
    with torch.no_grad():
        loss = linear_cross_entropy(input, weight, target, linear_bias=bias, impl=impl)
    assert not loss.requires_grad
    assert torch.equal(loss, expected)


@implementations()
def test_linear_cross_entropy_accumulates_gradients(impl):
    """A loss alone has 0.5 for its upstream gradient here; the parts' is 1."""
    input, weight, bias, target = make(impl, 40, 16, 6)
    for part in (slice(0, 25), slice(25, 40)):
        loss = linear_cross_entropy(
            input[part], weight, target[part], linear_bias=bias, divisor=10.0, impl=impl
        )
        loss.backward()
    whole = with_gradients(
        linear_cross_entropy, input, weight, bias, target, divisor=10.0, impl=impl, reduction="mean"
    )
    for leaf, expected in zip((input, weight, bias), whole[1:], strict=True):
        torch.testing.assert_close(leaf.grad, 2 * expected, rtol=1e-5, atol=1e-6)


@implementations()
def test_linear_cross_entropy_under_activation_checkpointing(impl):
    case = make(impl, 20, 8, 5)

    def checkpointed(input, weight, target, **options):
        return torch.utils.checkpoint.checkpoint(
            lambda: linear_cross_entropy(input * 1.0, weight, target, **options), use_reentrant=False
        )

    found = with_gradients(checkpointed, *case, impl=impl)
    for left, right in zip(found, with_gradients(linear_cross_entropy, *case, impl=impl), strict=True):
        assert torch.equal(left, right)


@implementations()
def test_linear_cross_entropy_under_autocast(impl):
    input, weight, bias, target = make(impl, 20, 8, 5)
    with torch.autocast(input.device.type, torch.bfloat16):
        loss = linear_cross_entropy(input, weight, target, linear_bias=bias, logit_scale=0.5, impl=impl)
        expected = F.cross_entropy(0.5 * F.linear(input, weight, bias).float(), target)
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=2e-2)
    assert loss.dtype == torch.float32
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(loss, (input, weight, bias)))


def test_linear_cross_entropy_reference_passes_gradcheck():
    input, weight, bias, target = make("reference", 7, 5, 4, dtype=torch.float64)
    factors = weights((input, weight))
    assert torch.autograd.gradcheck(
        lambda *leaves: linear_cross_entropy(
            leaves[0], leaves[1], target, linear_bias=leaves[2], **OPTIONS, **factors
        ),
        (input, weight, bias),
    )


@pytest.mark.skipif(triton_here.INTERPRETED, reason="the interpreter runs Triton's kernels alone")
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_linear_cross_entropy_passes_opcheck(reduction):
    input, weight, bias, target = make("cpp", 13, 8, 5)
    operator = torch.ops.fangyan.linear_cross_entropy.default
    early = reduction != "none"
    options = (reduction, IGNORE, 0.1, 0.0, 1.0, 0.0, 0.0, None, "auto", True, early, early, early)
    torch.library.opcheck(operator, (input, weight, bias, target, None, None, None, *options))
    frozen = (reduction, IGNORE, 0.0, 0.1, 0.25, 9.0, 0.0, 13, "auto", False, early, early, False)
    factors = torch.rand(5), torch.rand(13), torch.tensor(3.0)
    torch.library.opcheck(operator, (input, weight, None, target, *factors, *frozen))
    gradients = tuple(torch.rand(3) for _ in range(3))
    torch.library.opcheck(torch.ops.fangyan.scale_gradients_.default, (*gradients, torch.tensor(2.0)))


@implementations()
def test_linear_cross_entropy_compiles_as_one_graph(impl):
    torch._dynamo.reset()  # of other implementations
    compiled = torch.compile(linear_cross_entropy, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for tokens in (21, 34, 55):
            case = make(impl, tokens, 8, 5)
            found = with_gradients(compiled, *case, impl=impl, logit_scale=0.5)
            expected = with_gradients(linear_cross_entropy, *case, impl=impl, logit_scale=0.5)
            for left, right in zip(found, expected, strict=True):
                torch.testing.assert_close(left, right)
