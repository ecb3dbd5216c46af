"""Inputs of LoRA linears, and the check of every implementation against float64."""

import pytest
import torch
import torch.nn.functional as F
import triton_here
from fangyan_kernels import lora_linear
from fangyan_kernels.testing.error_budget import assert_within_error_budget

IMPLEMENTATIONS = ["reference", "cpp", "triton"]


FUSED = IMPLEMENTATIONS[1:]


SCALING = 0.7


def implementations(*names):
    return pytest.mark.parametrize("impl", names or IMPLEMENTATIONS, indirect=True)


def make(impl, tokens, inner, outer, rank, dtype=torch.float32, seed=0):
    """input, weight, A, B, bias; the weight frozen."""
    device = triton_here.DEVICE if impl == "triton" else "cpu"
    generator = torch.Generator().manual_seed(seed)
    sizes = ((tokens, inner), (outer, inner), (rank, inner), (outer, rank), (outer,))
    noise = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    return [
        tensor.to(device, dtype).requires_grad_(number != 1)  # the weight is frozen
        for number, tensor in enumerate(noise)
    ]


def plain(input, weight, a, b, bias, keep=None, scaling=SCALING):
    dropped = input if keep is None else input * keep.to(input.dtype)
    return F.linear(input, weight, bias) + scaling * F.linear(F.linear(dropped, a), b)


def with_gradients(function, case, **options):
    output = function(*case, **options)
    upstream = torch.linspace(-1.0, 1.5, output.numel(), dtype=torch.float64, device=output.device)
    leaves = [tensor for tensor in case if tensor.requires_grad]
    gradients = torch.autograd.grad(output, leaves, upstream.reshape(output.shape).to(output.dtype))
    return output, *gradients


def ours(input, weight, a, b, bias, **options):
    return lora_linear(input, weight, a, b, bias=bias, **{"scaling": SCALING, **options})


def seeded(device="cpu", seed=3):
    """The seed that the next call on a device draws, and the generator as it was before."""
    torch.manual_seed(seed)
    drawn = torch.empty((), dtype=torch.int64, device=device).random_()
    torch.manual_seed(seed)
    return drawn


def check_against_truth(impl, case, keep=None, **options):
    wide = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in case]
    truth = with_gradients(plain, wide, keep=keep)
    same_dtype = with_gradients(plain, case, keep=keep)
    found = with_gradients(ours, case, impl=impl, **options)
    sizes = with_gradients(plain, [t.abs().detach().requires_grad_(t.requires_grad) for t in wide], keep=keep)
    for name, value, other, exact, size in zip(
        ("output", "input", "A", "B", "bias"), found, same_dtype, truth, sizes, strict=True
    ):
        # A rounding step is relative to the terms of a sum, not to the sum.
        assert_within_error_budget(
            value, other, exact, f"{impl} {name}", term_size=size.detach().abs().amax()
        )
