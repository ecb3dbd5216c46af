"""float16 through the public functions, for cards without bfloat16, which are told so.

Values and gradients keep to an error budget as in each op's own tests; here they start from a loss scale.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
import triton_here
from fangyan_kernels import capability, linear_cross_entropy, lora_linear
from fangyan_kernels.lora_linear import reference
from fangyan_kernels.testing.error_budget import assert_within_error_budget
from fangyan_kernels.testing.launches import record_launches
from lora_cases import seeded
from torch._subclasses.fake_tensor import FakeTensorMode

# What a scaler of float16 starts from (torch.amp.GradScaler: 65,536).
LOSS_SCALE = 2.0**16
IGNORE = -100


def implementations(*names):
    return pytest.mark.parametrize("impl", names, indirect=True)


def noise(impl, *sizes, scale=1.0):
    device = triton_here.DEVICE if "triton" in impl else "cpu"
    generator = torch.Generator().manual_seed(len(sizes))
    return (scale * torch.randn(sizes, generator=generator)).to(device, torch.float16)


def check(call, plain, leaves, upstream, sizes):
    """The call's value and gradients, from an upstream gradient in its dtype, within the budget.

    Args:
        plain: the same expression in PyTorch, of leaves in any dtype; in float64 it is the truth.
        sizes: the largest sum of absolute terms behind an element of the value and of each gradient.
    """
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    found, eager, truth = (
        with_gradients(function, values, upstream)
        for function, values in ((call, leaves), (plain, leaves), (plain, doubles))
    )
    for name, value, other, exact, size in zip(
        ("value", *range(len(leaves))), found, eager, truth, sizes, strict=True
    ):
        assert other.isfinite().all(), f"{name} overflows in PyTorch too: the case tells nothing"
        assert_within_error_budget(value, other, exact, str(name), torch.float16, size)


def with_gradients(function, leaves, upstream):
    value = function(*leaves)
    return value, *torch.autograd.grad(value, leaves, upstream.to(value.dtype).expand_as(value))


@implementations("cpp", "triton_small_vocab", "triton_large_vocab")
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("classes", [7, 300])
def test_linear_cross_entropy_from_a_loss_scale(impl, classes, reduction):
    """A loss per token has a smaller upstream gradient, as it has under a mean."""
    if impl == "triton_small_vocab" and classes > 256:
        pytest.skip("it takes 256 classes of float16 at most")
    tokens, hidden = 50, 48
    input = noise(impl, tokens, hidden, scale=0.2).requires_grad_()
    weight = noise(impl, classes, hidden, scale=0.2).requires_grad_()
    bias = noise(impl, classes).requires_grad_()
    target = torch.arange(tokens, device=input.device) % classes
    target[::4] = IGNORE
    labelled = target != IGNORE

    def ours(input, weight, bias):
        options = {"linear_bias": bias, "z_loss": 1e-3, "label_smoothing": 0.1, "reduction": reduction}
        return linear_cross_entropy(input, weight, target, impl=impl, **options)

    def plain(input, weight, bias):
        logits = F.linear(input, weight, bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = F.cross_entropy(logits, target, reduction="none", label_smoothing=0.1)
        loss = loss + 1e-3 * labelled * logits.logsumexp(1) ** 2
        return loss.sum() / labelled.sum() if reduction == "mean" else loss

    upstream = torch.tensor(LOSS_SCALE if reduction == "mean" else LOSS_SCALE / 64, device=input.device)
    logits = F.linear(*(leaf.detach().double().abs() for leaf in (input, weight, bias)))
    terms = upstream * labelled[:, None] * (logits.softmax(1) + 1)
    terms = terms / labelled.sum() if reduction == "mean" else terms
    sizes = (
        logits.amax(),
        (terms @ weight.double().abs()).amax(),
        (terms.T @ input.double().abs()).amax(),
        terms.sum(0).amax(),
    )
    check(ours, plain, (input, weight, bias), upstream, sizes)


@implementations("cpp", "triton")
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("base", ["plain", "nf4", "nested fp4"])
@pytest.mark.parametrize("tokens", [5, 150])
def test_lora_linear_from_a_loss_scale(impl, tokens, base, dropout):
    """4-bit weights of few tokens are unpacked, of many merged; the upstream gradient is scaled."""
    inner, outer, rank, scaling = 64, 48, 4, 0.5
    input = noise(impl, tokens, inner).requires_grad_()
    weight = noise(impl, outer, inner, scale=inner**-0.5)
    a = noise(impl, rank, inner, scale=inner**-0.5).requires_grad_()
    b = noise(impl, outer, rank, scale=rank**-0.5).requires_grad_()
    dense = frozen = weight
    if base != "plain":
        bnb = pytest.importorskip("bitsandbytes")
        kind = {"quant_type": base[-3:], "compress_statistics": "nested" in base, "blocksize": 64}
        frozen = bnb.nn.Params4bit(weight.cpu(), **kind).to(weight.device)
        dense = bnb.functional.dequantize_4bit(frozen.data, frozen.quant_state)
    keep = torch.ones(tokens, inner)
    if dropout:
        seed = seeded(input.device).cpu()  # that the call draws
        keep = reference.keep_mask(seed, tokens, inner, dropout) / (1 - dropout)

    def ours(input, a, b):
        torch.manual_seed(3)
        return lora_linear(input, frozen, a, b, scaling=scaling, dropout=dropout, impl=impl)

    def plain(input, a, b, base=dense):
        low = F.linear(input * keep.to(input), a)
        return F.linear(input, base.to(input)) + scaling * F.linear(low, b)

    # The loss scale, over about as many tokens as there are in the mean.
    upstream = noise(impl, tokens, outer).sign() * (LOSS_SCALE / 128)
    terms = [leaf.detach().double().abs().requires_grad_() for leaf in (input, a, b)]
    sizes = with_gradients(partial(plain, base=dense.abs()), terms, upstream.abs())
    check(ours, plain, (input, a, b), upstream, [size.detach().amax() for size in sizes])


CARDS = {(7, 0): "7.0", (7, 5): "7.5", (8, 0): None, (9, 0): None}


@pytest.mark.parametrize("impl", ["auto", "triton"])
@pytest.mark.parametrize("card", CARDS, ids=str)
def test_refuse_bfloat16_on_old_cards(card, impl, monkeypatch):
    """Tensors of a GPU that is not here: they have a device, a dtype and a shape."""
    monkeypatch.setattr(capability, "_capability", lambda _: card)

    def both(dtype):
        with FakeTensorMode():
            input, weight, a, b = (
                torch.empty(size, dtype=dtype, device="cuda") for size in ((4, 8), (3, 8), (2, 8), (3, 2))
            )
            target = torch.zeros(4, dtype=torch.int64, device="cuda")
            yield lambda: linear_cross_entropy(input, weight, target, impl=impl)
            yield lambda: lora_linear(input, weight, a, b, impl=impl)

    for dtype in (torch.float16, torch.float32, torch.bfloat16):
        for call in both(dtype):
            if dtype == torch.bfloat16 and CARDS[card]:
                with pytest.raises(ValueError, match=rf"of {CARDS[card]}; expected torch.float16"):
                    call()
            else:
                assert call().device.type == "cuda"


@pytest.mark.skipif(triton_here.INTERPRETED, reason="an interpreter compiles nothing")
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("classes", [7, 300, 5000])
def test_linear_cross_entropy_compiles_every_reduction_in_float16(classes, reduction):
    """Kernels without a divisor have no pointer to one; float16 always is. An interpreter does not mind."""
    with record_launches() as launches:
        input, weight = (torch.randn(size, 64).half().requires_grad_() for size in (20, classes))
        target = torch.randint(classes, (20,))
        linear_cross_entropy(input, weight, target, reduction=reduction, impl="triton").sum().backward()
    assert launches.launched
