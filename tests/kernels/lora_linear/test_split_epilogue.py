"""A peer of the benchmarks: it has to be right to be beaten."""

import pytest
import torch
import torch.nn.functional as F
import triton_here
from fangyan_kernels.lora_linear.reference import keep_mask

if triton_here.MISSING:
    pytest.skip(triton_here.MISSING, allow_module_level=True)

from peers.split_epilogue import SplitEpilogue

SCALING = 2.0


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize(("tokens", "inner", "outer", "rank"), [(70, 96, 130, 8), (1, 64, 64, 1)])
def test_triton_values_and_gradients(tokens, inner, outer, rank, dropout):
    sizes = ((tokens, inner), (outer, inner), (rank, inner), (outer, rank))
    x, weight, a, b = (torch.randn(size, device=triton_here.DEVICE) / size[1] ** 0.5 for size in sizes)
    for tensor in (x, a, b):
        tensor.requires_grad_()
    torch.manual_seed(3)
    y = SplitEpilogue.apply(x, weight, a, b, SCALING, dropout)
    torch.manual_seed(3)
    seed = torch.randint(2**62, ())  # drawn by it likewise
    grad = torch.randn_like(y)
    found = (y, *torch.autograd.grad(y, (x, a, b), grad))

    exact = [tensor.detach().double().requires_grad_() for tensor in (x, a, b)]
    kept = torch.ones_like(exact[0])
    if dropout:
        kept = keep_mask(seed, tokens, inner, dropout).to(x.device) / (1 - dropout)
    tail = F.linear(F.linear(exact[0] * kept, exact[1]), exact[2])
    truth = F.linear(exact[0], weight.double()) + SCALING * tail
    expected = (truth, *torch.autograd.grad(truth, exact, grad.double()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
