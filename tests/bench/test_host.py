"""The driver that launches nothing: what it records is what a GPU would have been sent."""

import pytest
import torch
import triton_here
from fangyan_kernels import linear_cross_entropy

from harness.host import launching_nothing


@pytest.mark.skipif(triton_here.INTERPRETED, reason="the interpreter launches and compiles nothing")
def test_launches_and_variants_are_recorded():
    x, weight = (torch.randn(size, 32).bfloat16().requires_grad_() for size in (64, 7))
    target = torch.randint(7, (64,))
    with launching_nothing() as launches:
        for tokens in (64, 63):
            launches.clear()
            linear_cross_entropy(x[:tokens], weight, target[:tokens], impl="triton").backward()
            assert "finish" in launches.launched
        assert not launches.variants, "another number of tokens, another compilation"
    with pytest.raises(ValueError, match="cpu"):
        linear_cross_entropy(x, weight, target, impl="triton")
