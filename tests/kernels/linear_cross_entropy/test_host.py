"""What a step of tags costs its host that needs no clock: launches, and variants compiled in training."""

import pytest
import torch
import triton_here
from fangyan_kernels import linear_cross_entropy

if triton_here.INTERPRETED:
    pytest.skip("an interpreter compiles nothing", allow_module_level=True)

from fangyan_kernels.testing.launches import record_launches

ONE_PASS = ["small_vocab_rows", "reduce_partials", "scale_gradients"]
TWO_PASSES = ["small_vocab_logits", "small_vocab_weight", "reduce_partials", "scale_gradients"]


def step(tokens, hidden, classes, **options):
    input = torch.zeros(tokens, hidden, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.zeros(classes, hidden, dtype=torch.bfloat16, requires_grad=True)
    target = torch.zeros(tokens, dtype=torch.int64)
    linear_cross_entropy(input, weight, target, impl="triton_small_vocab", **options).backward()


@pytest.mark.parametrize(("hidden", "kernels"), [(256, ONE_PASS), (1280, TWO_PASSES)])
def test_small_vocab_launches_and_variants(hidden, kernels):
    """Each kernel is compiled once, whatever the number of tokens and of programs of a last batch."""
    with record_launches() as launches:
        step(512, hidden, 9, divisor=300.0)
        assert launches.launched == kernels
        first = list(launches.variants)
        for tokens in (1, 7, 16, 48, 200, 1000):
            step(tokens, hidden, 9, divisor=300.0)
        assert launches.variants == first
        assert len(first) <= len(kernels)
        launches.clear()
        step(512, hidden, 9)  # without a divisor, the targets' weights are summed first
        assert launches.launched == ["sum_target_weights_kernel", *kernels]
