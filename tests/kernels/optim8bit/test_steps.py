"""Steps of the 8-bit optimizers against their reference, and against AdamW in float64."""

import copy

import bitsandbytes as bnb
import fangyan_kernels
import pytest
import torch
import triton_here
from fangyan_kernels import AdamW8bit
from hypothesis import example, given, settings
from hypothesis import strategies as st
from optim8bit_cases import KEYS, OURS, gradients, kept_states, run

if triton_here.INTERPRETED:
    pytest.skip("the interpreter runs Triton's kernels alone", allow_module_level=True)


SIZES = [1, 255, 256, 257, 1000, 70_001]


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("algorithm", OURS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_step_equals_the_reference(algorithm, size, dtype):
    """Step by step from the same states: but for sums whose last bit is another, the same codes."""
    start = torch.randn(size, generator=torch.Generator().manual_seed(9)).to(dtype)
    ours, other = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    settings = {"lr": 0.01, "weight_decay": 0.1, "min_8bit_size": 0}
    optimizer, plain = (
        OURS[algorithm]([ours], **settings),
        OURS[algorithm]([other], impl="reference", **settings),
    )
    for number, gradient in enumerate(gradients(size, 4, dtype)):
        ours.grad, other.grad = gradient, gradient
        if number:
            plain.state[other] = copy.deepcopy(optimizer.state[ours])
            other.data.copy_(ours.data)
        optimizer.step()
        plain.step()
        torch.testing.assert_close(ours, other, rtol=2 * torch.finfo(dtype).eps, atol=2e-7)
        found, expected = optimizer.state[ours], plain.state[other]
        assert found["step"] == expected["step"] == number + 1
        for k in kept_states(algorithm):
            torch.testing.assert_close(found[f"absmax{k}"], expected[f"absmax{k}"], rtol=1e-6, atol=0.0)
            apart = (found[f"state{k}"].int() - expected[f"state{k}"].int()).abs()
            assert apart.max() <= 1
            assert apart.double().mean() < 1e-3


@pytest.mark.parametrize("algorithm", OURS)
@pytest.mark.parametrize("rate", [0.0, 1e-44])
def test_step_without_a_learning_rate(algorithm, rate):
    """As in a warm-up's first step; among the gradients are zeros, which have averages of 0."""
    start = torch.randn(1000, generator=torch.Generator().manual_seed(9))
    (gradient,) = gradients(1000, 1)
    gradient[:300] = 0.0
    parameter = torch.nn.Parameter(start.clone())
    optimizer = OURS[algorithm]([parameter], lr=rate, weight_decay=0.1, min_8bit_size=0)
    parameter.grad = gradient
    optimizer.step()
    assert torch.equal(parameter.detach(), start)
    assert optimizer.state[parameter]["absmax1"].flatten()[2] > 0


@pytest.mark.parametrize(("spread", "bound"), [(0.0, 0.025), (1.0, 0.09), (2.0, 0.4)])
def test_adamw8bit_deviation_from_float64(spread, bound):
    """The way of parameters over many steps is nearer to the exact one than bitsandbytes' is.

    The more a block's gradients differ in size, the less 256 codes hold of the small ones' squares.
    """
    size = 20_000
    start = torch.randn(size, generator=torch.Generator().manual_seed(9))
    steps = gradients(size, 100, spread=spread)
    exact = torch.nn.Parameter(start.double())
    optimizer = torch.optim.AdamW([exact], lr=0.01, weight_decay=0.01)
    for gradient in steps:
        exact.grad = gradient.double()
        optimizer.step()
    ours, theirs = (
        float((run(make, start, steps)[0] - exact.detach()).norm() / (exact.detach() - start).norm())
        for make in (AdamW8bit, bnb.optim.AdamW8bit)
    )
    assert ours < bound
    assert ours < 1.01 * theirs


@pytest.mark.parametrize("algorithm", OURS)
def test_step_on_any_number_of_threads(algorithm):
    start, steps = torch.randn(300_001), gradients(300_001, 3)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            parameter, optimizer = run(OURS[algorithm], start, steps)
            (state,) = optimizer.state.values()
            results.append([parameter, *[state[key] for key in KEYS if key in state]])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


# The last has an infinite square, which Lion does not take.
NO_GRADIENTS = [(algorithm, bad) for algorithm in OURS for bad in (float("nan"), float("inf"), -float("inf"))]


NO_GRADIENTS += [(algorithm, 1e30) for algorithm in OURS if algorithm != "lion"]


@pytest.mark.parametrize(("algorithm", "bad"), NO_GRADIENTS)
@pytest.mark.parametrize("bits", [8, 32])
def test_step_skips_gradients_that_are_not_finite(algorithm, bits, bad):
    """Its number keeps its value, the others take the steps that they take without it, and it is counted."""
    size, at = 1000, [5, 600, 999]
    start, steps = torch.randn(size), gradients(size, 3)
    whole = [step.clone() for step in steps]
    for step in whole:
        step[at] = 0.0
    spoilt = [step.clone() for step in whole]
    spoilt[1][at] = bad
    settings = {"min_8bit_size": 0 if bits == 8 else 10_000}
    results = []
    for gradient, impl in ((whole, "auto"), (spoilt, "auto"), (spoilt, "reference")):
        parameter = torch.nn.Parameter(start.clone())
        optimizer = OURS[algorithm]([parameter], lr=0.01, impl=impl, **settings)
        left, values = [], []
        for step in gradient:
            parameter.grad = step
            optimizer.step()
            left.append(optimizer.num_skipped)
            values.append(parameter.detach().clone())
        results.append((left, values, optimizer.state[parameter]))
    (_, expected, state), (left, found, other), (left_there, *_) = results
    assert left == left_there == [0, 3, 0]
    assert torch.equal(found[1][at], found[0][at])
    rest = torch.ones(size, dtype=torch.bool)
    rest[at] = False
    assert torch.equal(found[2][rest], expected[2][rest])
    for key in KEYS:
        if key in state:
            assert torch.equal(other[key], state[key])


@given(size=st.integers(1, 1500), scale=st.floats(1e-25, 1e15), steps=st.integers(1, 3))
@example(size=163, scale=4.15e-20, steps=2)  # denormal squares
@settings(max_examples=50)
def test_step_of_any_size_and_scale(size, scale, steps):
    start = torch.randn(size)
    some = [scale * step for step in gradients(size, steps, seed=size)]
    found, expected = (run(AdamW8bit, start, some, impl=impl)[0] for impl in ("cpp", "reference"))
    assert torch.isfinite(found).all()
    # A code that differs by one moves a step by a hundredth of the rate.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)


def test_step_of_a_strided_parameter():
    values = torch.randn(300, 70)
    parameter = torch.nn.Parameter(values.t().contiguous().t())
    assert not parameter.is_contiguous()
    optimizer = AdamW8bit([parameter], lr=0.01)
    parameter.grad = torch.randn(70, 300).t()
    expected, _ = run(AdamW8bit, values, [parameter.grad.contiguous()])
    optimizer.step()
    assert torch.equal(parameter.detach(), expected)


def test_optimizers_refuse_bad_arguments():
    with pytest.raises(ValueError, match="impl is 'cuda', expected one of auto, reference, cpp"):
        AdamW8bit([torch.nn.Parameter(torch.zeros(3))], impl="cuda")
    with pytest.raises(AttributeError, match="no attribute 'Adam4bit'"):
        getattr(fangyan_kernels, "Adam4bit")  # noqa: B009
