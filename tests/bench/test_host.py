"""The driver that launches nothing: what it records is what a GPU would have been sent."""

import pytest
import torch
import triton_here
from fangyan_kernels import launching, linear_cross_entropy, lora_linear
from fangyan_kernels.testing.launches import record_launches


@pytest.mark.skipif(triton_here.INTERPRETED, reason="the interpreter launches and compiles nothing")
def test_record_launches_of_two_sizes():
    x, weight = (torch.randn(size, 32).bfloat16().requires_grad_() for size in (64, 7))
    target = torch.randint(7, (64,))
    with record_launches() as launches:
        for tokens in (64, 63):
            launches.clear()
            linear_cross_entropy(x[:tokens], weight, target[:tokens], impl="triton").backward()
            assert "reduce_partials" in launches.launched
        assert not launches.variants, "another number of tokens, another compilation"
    with pytest.raises(ValueError, match="cpu"):
        linear_cross_entropy(x, weight, target, impl="triton")


OPS = {
    "tags": lambda x, w, t, *_: linear_cross_entropy(x, w[:7], t, divisor=9.0, impl="triton"),
    "tags in two passes": lambda x, w, t, *_: linear_cross_entropy(x, w[:32], t, impl="triton_small_vocab"),
    "few classes": lambda x, w, t, *_: linear_cross_entropy(x, w[:300], t, impl="triton"),
    "vocabulary": lambda x, w, t, *_: linear_cross_entropy(x, w, t, max_valid=50, impl="triton"),
    "LoRA": lambda x, _w, _t, a, b: lora_linear(x, x.detach(), a, b, dropout=0.1, scaling=2.0, impl="triton"),
}


@pytest.mark.skipif(triton_here.INTERPRETED, reason="the interpreter launches and compiles nothing")
@pytest.mark.parametrize("name", OPS)
def test_launch_of_a_compiled_variant(name):
    """A second call does without Triton's binder, and hands CUDA the same."""
    hidden = 1280 if "two" in name else 64
    sizes = ((hidden, hidden), (5000, hidden), (16, hidden), (hidden, 16))
    x, weight, a, b = (torch.randn(size).bfloat16().requires_grad_() for size in sizes)
    target = torch.randint(7, (hidden,))
    launching._compiled.clear()
    calls, known = [], []
    with record_launches(keep_arguments=True) as launches:
        for _ in range(2):
            launches.clear()
            result = OPS[name](x, weight, target, a, b)
            result.backward(torch.ones_like(result))
            calls.append(dict(launches.arguments))
            known.append(len(launching._compiled))
    first, second = calls
    assert known[0] == known[1] > 0, "constants made again in each call find no variant"
    assert launches.launched
    assert list(first) == list(second)
    for kernel, arguments in first.items():
        # Before the kernel's own: the grid, the stream, the function, and Triton's hooks.
        assert _described(arguments) == _described(second[kernel]), kernel


def _described(arguments):
    tensors = [(x.dtype, x.shape) if isinstance(x, torch.Tensor) else x for x in arguments]
    return tensors[:4], tensors[9:]
