"""Statistics, divisor, bound of the valid targets, gradient filter, and memory."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_cases import (
    IGNORE,
    check_against_truth,
    implementations,
    make,
    with_gradients,
)
from fangyan_kernels import linear_cross_entropy, linear_cross_entropy_with_statistics


@implementations()
@pytest.mark.parametrize("logit_scale", [1.0, 0.125, -2.0])
def test_linear_cross_entropy_with_statistics(impl, logit_scale):
    input, weight, bias, target = make(impl, 50, 16, 6)
    options = {"linear_bias": bias, "logit_scale": logit_scale, "impl": impl}
    loss, found = linear_cross_entropy_with_statistics(input, weight, target, predictions=True, **options)
    best = (logit_scale * F.linear(input, weight, bias)).argmax(1)
    labelled = target != IGNORE
    assert torch.equal(found.predictions, torch.where(labelled, best, IGNORE))
    assert found.num_valid == labelled.sum()
    assert found.num_correct == (best == target)[labelled].sum() > 0
    assert loss.requires_grad
    alone, counts = linear_cross_entropy_with_statistics(input, weight, target, **options)
    assert torch.equal(alone, linear_cross_entropy(input, weight, target, **options))
    assert counts.predictions is None
    assert counts.num_valid == found.num_valid


@implementations()
def test_linear_cross_entropy_predicts_the_first_of_equal_classes(impl):
    _, _, _, target = make(impl, 8, 4, 16, ignored=0.0)
    input, same = (torch.ones(rows, 4, device=target.device) for rows in (8, 16))
    _, found = linear_cross_entropy_with_statistics(input, same, target, predictions=True, impl=impl)
    assert (found.predictions == 0).all()
    assert found.num_correct == (target == 0).sum()


@implementations()
def test_linear_cross_entropy_with_a_divisor(impl):
    case = make(impl, 20, 8, 5)
    options = {"logit_scale": 0.5, "impl": impl}
    by_sum = with_gradients(linear_cross_entropy, *case, reduction="sum", **options)
    for divisor in (7, torch.tensor(7.0, device=case[0].device)):
        found = with_gradients(linear_cross_entropy, *case, divisor=divisor, **options)
        for left, right in zip(found, by_sum, strict=True):
            torch.testing.assert_close(left, right / 7, rtol=1e-6, atol=1e-7)


@implementations("triton_large_vocab")
@pytest.mark.parametrize("more", [0, 3, 100], ids=str)
def test_linear_cross_entropy_with_max_valid(impl, more):
    """An upper bound does: what is too much of it is no token."""
    input, weight, bias, target = make(impl, 40, 16, 300, ignored=0.8)
    most = int((target != IGNORE).sum()) + more
    for reduction in ("mean", "none"):
        options = {"impl": impl, "reduction": reduction, "logit_scale": 0.5}
        full = with_gradients(linear_cross_entropy, input, weight, bias, target, **options)
        packed = with_gradients(linear_cross_entropy, input, weight, bias, target, **options, max_valid=most)
        for left, right in zip(packed, full, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)


@implementations("triton_large_vocab")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_linear_cross_entropy_in_chunks_of_triton(impl, dtype, monkeypatch):
    from fangyan_kernels.linear_cross_entropy import triton_large_vocab

    monkeypatch.setattr(triton_large_vocab, "LEAST_CHUNK", 16)
    monkeypatch.setattr(triton_large_vocab, "CHUNK_BYTES", 16 * 300 * dtype.itemsize)
    check_against_truth(impl, make(impl, 50, 16, 300, dtype=dtype), reduction="mean", logit_scale=0.5)


@implementations("triton_large_vocab")
def test_linear_cross_entropy_with_max_valid_of_zero(impl):
    input, weight, bias, target = make(impl, 9, 8, 300)
    target.fill_(IGNORE)
    found = with_gradients(linear_cross_entropy, input, weight, bias, target, impl=impl, max_valid=0)
    assert all(tensor.abs().sum() == 0 for tensor in found)


@implementations("cpp")
@pytest.mark.parametrize("logit_scale", [1.0, 2.0])
@pytest.mark.parametrize("threshold", [2**-12, 2**-6])
def test_linear_cross_entropy_gradient_filter_is_bounded(impl, threshold, logit_scale):
    """An element is off by at most the threshold times the absolute sum of what it was summed over."""
    input, weight, bias, target = make(impl, 200, 32, 3000, scale=1.5 / logit_scale)
    case, options = (input, weight, bias, target), {"reduction": "sum", "logit_scale": logit_scale}
    exact = with_gradients(linear_cross_entropy, *case, impl=impl, **options)
    found = with_gradients(linear_cross_entropy, *case, impl=impl, gradient_filter=threshold, **options)
    threshold *= logit_scale
    assert torch.equal(found[0], exact[0])
    assert torch.equal(found[3], exact[3])
    labelled = (target != IGNORE)[:, None]
    off_input, off_weight = ((left - right).abs() for left, right in zip(found[1:3], exact[1:3], strict=True))
    slack = 1e-4  # of the two ways to sum
    assert (off_input <= threshold * labelled * weight.abs().sum(0) + slack).all()
    assert (off_weight <= threshold * (labelled * input.abs()).sum(0) + slack).all()
    assert off_weight.amax() > 10 * slack * threshold  # something was left out
    assert (found[1] - exact[1]).norm() < 0.3 * exact[1].norm()


@implementations("cpp")
def test_linear_cross_entropy_gradient_filter_of_flat_gradients(impl):
    case = make(impl, 50, 8, 300, scale=1e-3)
    exact, found = (
        with_gradients(linear_cross_entropy, *case, impl=impl, gradient_filter=least) for least in (0.0, 1e-4)
    )
    assert all(map(torch.equal, found, exact))


MEMORY = """
import ctypes, gc, re, sys
from pathlib import Path
import torch
import torch.nn.functional as F
from fangyan_kernels import linear_cross_entropy, linear_cross_entropy_with_statistics

def status(field):
    return 1024 * int(re.search(rf"{field}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

def eager(input, weight, target):
    return F.cross_entropy(F.linear(input, weight), target)

leaves = [torch.randn(size, 64).requires_grad_() for size in (2048, 21128)]
target = torch.randint(21128, (2048,))
for function in (eager, linear_cross_entropy):
    for _ in range(2):  # libraries load and threads start in the first call
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        torch.autograd.grad(function(*leaves, target), leaves)
        most = status("VmHWM") - before
    print(most)
"""


@pytest.mark.slow
def test_linear_cross_entropy_memory_of_cpp():
    """At 2,048 tokens and 21,128 classes, beyond the gradients that any implementation returns."""
    command = [sys.executable, "-c", MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    gradients = 4 * 64 * (2048 + 21128)
    eager, ours = (int(line) - gradients for line in done.stdout.split())
    assert eager > 2 * 4 * 2048 * 21128
    assert ours <= eager / 10, f"{ours / 1e6:.0f} MB, eager takes {eager / 1e6:.0f}"
