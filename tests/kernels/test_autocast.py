"""Inside an operator nothing is cast: its products and sums are in the dtypes that it was given."""

import contextlib

import fangyan_kernels  # noqa: F401  (the operators)
import pytest
import torch
import triton_here

TOKENS, INNER, OUTER, RANK = 96, 64, 32, 4
operators = torch.ops.fangyan


def rand(*size, dtype, seed):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def cross_entropy(dtype, variant, classes=40):
    target = torch.randint(classes, (TOKENS,), generator=torch.Generator().manual_seed(2))
    input, weight = rand(TOKENS, INNER, dtype=dtype, seed=0), rand(classes, INNER, dtype=dtype, seed=1)
    options = ("mean", -100, 0.1, 1e-4, 0.5, 0.0, 0.0, None, variant, True, True, True, False)
    return operators.linear_cross_entropy.default(input, weight, None, target, None, None, None, *options)


def lora(dtype, four_bit, dropout):
    """The outputs, then all gradients."""
    input = rand(TOKENS, INNER, dtype=dtype, seed=0)
    a, b = rand(RANK, INNER, dtype=dtype, seed=1), rand(OUTER, RANK, dtype=dtype, seed=2)
    weight, frozen = rand(OUTER, INNER, dtype=dtype, seed=3), ([], [], "")
    if four_bit:
        functional = pytest.importorskip("bitsandbytes.functional")
        weight, state = functional.quantize_4bit(weight, quant_type="nf4")
        frozen = [state.absmax], [state.blocksize], "nf4"
    seed = torch.tensor(7) if dropout else None
    arguments = input, [weight], [], [a], [b], [2.0], dropout, seed, *frozen
    outputs, low = operators.lora_linear.default(*arguments, True)
    grad = rand(TOKENS, OUTER, dtype=dtype, seed=4)
    gradients = operators.lora_linear_backward.default([grad], *arguments, low, True, True, False)
    return *outputs, gradients[0], *gradients[1], *gradients[2]


def attention(dtype):
    query, key, value, grad = (rand(TOKENS, 2, 16, dtype=dtype, seed=seed) for seed in range(4))
    rest = query, key, value, torch.tensor([0, 40, TOKENS], dtype=torch.int32), -1, -1, 0.25
    return (
        operators.varlen_attention.default(*rest),
        *operators.varlen_attention_backward.default(grad, *rest),
    )


CALLS = {
    "small vocabulary": lambda dtype: cross_entropy(dtype, "auto"),
    "large vocabulary": lambda dtype: cross_entropy(dtype, "auto", classes=400),
    "LoRA": lambda dtype: lora(dtype, False, 0.0),
    "LoRA, dropout": lambda dtype: lora(dtype, False, 0.1),
    "NF4": lambda dtype: lora(dtype, True, 0.0),
    "attention": attention,
    "triton: large vocabulary": lambda dtype: cross_entropy(dtype, "large_vocab"),
    "triton: LoRA": lambda dtype: lora(dtype, False, 0.0),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CALLS)
def test_operators_under_autocast(name, dtype, inference, monkeypatch):
    """In inference mode too, where no operator goes by autograd."""
    if ("triton" in name) != triton_here.INTERPRETED:
        pytest.skip("the interpreter runs Triton's kernels alone, and nothing else runs them on a CPU")
    routed = triton_here.on_the_cpu(monkeypatch) if "triton" in name else contextlib.nullcontext()
    with routed, torch.inference_mode(inference):
        expected = CALLS[name](dtype)
        # Not the operands' dtype, so that a cast would be seen.
        with torch.autocast("cpu", torch.bfloat16 if dtype == torch.float32 else torch.float16):
            found = CALLS[name](dtype)
    for left, right in zip(found, expected, strict=True):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
