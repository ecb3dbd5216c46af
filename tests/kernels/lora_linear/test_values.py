"""Values and gradients of every implementation against float64, within an error budget."""

import pytest
import torch
import triton_here
from fangyan_kernels import lora_linear
from fangyan_kernels.lora_linear import reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_cases import FUSED, check_against_truth, implementations, make, ours, seeded, with_gradients

# T, K, N, R: both sides of the number of tokens from which a weight is merged.
SHAPES = [(1, 1, 1, 1), (3, 63, 5, 2), (130, 63, 48, 3), (97, 16, 100, 16), (300, 64, 17, 40)]


LARGE = [(1000, 256, 1000, 8), (64, 300, 63, 256)]


@implementations()
@pytest.mark.parametrize("shape", SHAPES + LARGE, ids=lambda s: "x".join(map(str, s)))
def test_lora_linear_values_and_gradients(impl, shape):
    if impl == "triton" and triton_here.INTERPRETED and shape in LARGE:
        pytest.skip("an interpreter takes minutes for it")
    check_against_truth(impl, make(impl, *shape))


@implementations()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES[2:4], ids=lambda s: "x".join(map(str, s)))
def test_lora_linear_in_sixteen_bits(impl, dtype, shape):
    check_against_truth(impl, make(impl, *shape, dtype=dtype))


@implementations()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_lora_linear_with_dropout(impl, dtype, shape):
    """Everyone drops the elements that the reference says, in forward and backward."""
    case = make(impl, *shape, dtype=dtype)
    keep = reference.keep_mask(seeded(case[0].device), shape[0], shape[1], 0.3).double() / 0.7
    check_against_truth(impl, case, keep=keep, dropout=0.3)


@pytest.mark.skipif(triton_here.INTERPRETED, reason="the interpreter runs Triton's kernels alone")
@pytest.mark.parametrize("accumulate", [False, True])
def test_lora_dropout_in_bfloat16(accumulate):
    """To the bit, with rows for several threads that are no whole vectors."""
    generator = torch.Generator().manual_seed(0)
    seed, dropout = torch.tensor(-(2**40) + 5), 0.3
    x, before = (torch.randn(900, 97, generator=generator).bfloat16() for _ in range(2))
    kept = x.double() * reference.keep_mask(seed, *x.shape, dropout)
    # Once rounded to float32, as is 1 / (1 - dropout), and once to bfloat16.
    scaled = kept * torch.tensor(1 / (1 - dropout)).double()
    expected = (scaled + before.double() if accumulate else scaled).float().bfloat16()
    found = before.clone()
    torch.ops.fangyan.lora_dropout_(found, x, seed, dropout, accumulate)
    assert torch.equal(found, expected)


def test_keep_mask_is_random():
    share = 0.1
    masks = [reference.keep_mask(torch.tensor(seed), 2000, 500, share).double() for seed in (1, 2, -5, 2**40)]
    for mask in masks:
        assert mask.mean() == pytest.approx(1 - share, abs=2e-3)
        assert mask.mean(0).std() == pytest.approx((share * (1 - share) / 2000) ** 0.5, rel=0.15)
        assert mask.mean(1).std() == pytest.approx((share * (1 - share) / 500) ** 0.5, rel=0.15)
        centred = mask - mask.mean()
        for one, other in ((centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1])):
            assert abs((one * other).mean() / centred.var()) < 5e-3
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert abs(((one - one.mean()) * (other - other.mean())).mean() / one.var()) < 5e-3


@implementations(*FUSED)
def test_lora_linear_with_dropout_under_checkpointing(impl):
    from torch.utils.checkpoint import checkpoint

    case = make(impl, *SHAPES[2])
    seeded()
    expected = with_gradients(ours, case, impl=impl, dropout=0.5)
    seeded()
    again = with_gradients(
        lambda *values: checkpoint(lambda *v: ours(*v, impl=impl, dropout=0.5), *values, use_reentrant=False),
        case,
    )
    for one, other in zip(expected, again, strict=True):
        assert torch.equal(one, other)


@implementations()
def test_lora_linear_without_tokens(impl):
    case = make(impl, 0, 8, 6, 2)
    output, *gradients = with_gradients(ours, case, impl=impl)
    assert output.shape == (0, 6)
    assert [gradient.shape for gradient in gradients] == [t.shape for n, t in enumerate(case) if n != 1]
    assert not any(gradient.any() for gradient in gradients)


@implementations()
def test_lora_linear_of_strided_tensors(impl):
    input, weight, a, b, bias = make(impl, 60, 32, 24, 4)
    wide = torch.stack([input.detach()] * 2, dim=-1)[..., 0].requires_grad_()
    assert not wide.is_contiguous()
    case = [wide, weight.T.contiguous().T, a.detach().T.contiguous().T.requires_grad_(), b, bias]
    check_against_truth(impl, case)
    shaped = lora_linear(wide.view(3, 20, 32), *case[1:4], impl=impl)
    flat = lora_linear(input, weight, a, b, impl=impl)
    torch.testing.assert_close(shaped.view(60, 24), flat, rtol=1e-5, atol=1e-5)


@implementations(*FUSED)
@pytest.mark.parametrize("wanted", [(0,), (2,), (3,), (4,), (0, 2), (2, 3)])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_lora_linear_with_some_gradients(impl, wanted, dropout):
    case = [tensor.detach() for tensor in make(impl, *SHAPES[2])]
    everything = [tensor.detach().requires_grad_(n != 1) for n, tensor in enumerate(case)]
    seeded()
    expected = with_gradients(ours, everything, impl=impl, dropout=dropout)
    some = [tensor.detach().requires_grad_(n in wanted) for n, tensor in enumerate(case)]
    seeded()
    found = with_gradients(ours, some, impl=impl, dropout=dropout)
    positions = [0, *[{0: 1, 2: 2, 3: 3, 4: 4}[n] for n in wanted]]
    for value, position in zip(found, positions, strict=True):
        assert torch.equal(value, expected[position])


@implementations(*FUSED)
def test_lora_linear_with_nan_filled_buffers(impl):
    case = make(impl, 130, 63, 48, 3)
    seeded()
    expected = with_gradients(ours, case, impl=impl, dropout=0.5)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)  # new buffers are then full of NaN
    try:
        seeded()
        found = with_gradients(ours, case, impl=impl, dropout=0.5)
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@given(
    tokens=st.integers(0, 120),
    inner=st.integers(1, 70),
    outer=st.integers(1, 70),
    rank=st.integers(1, 20),
    dropout=st.sampled_from([0.0, 0.1, 0.9]),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lora_linear_of_any_shape(tokens, inner, outer, rank, dropout):
    if triton_here.INTERPRETED:
        pytest.skip("the interpreter runs Triton's kernels alone")
    case = make("cpu", tokens, inner, outer, rank)
    seeded()
    expected = with_gradients(ours, case, impl="reference", dropout=dropout)
    seeded()
    found = with_gradients(ours, case, impl="cpp", dropout=dropout)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
