"""The Triton kernels for few classes: one pass or two, and the results that are wanted."""

import pytest
import torch
import triton_here
from cross_entropy_cases import (
    OPTIONS,
    check_against_truth,
    implementations,
    make,
    weights,
    with_gradients,
)
from fangyan_kernels import linear_cross_entropy

# Of tokens, hidden size and classes: the one pass in tiles of every width, and more than one tile per
# program; rows that begin at any address take two passes.
TAGS = [(9, 48, 1), (100, 272, 9), (35, 304, 32), (20, 1024, 7), (35, 301, 32), (9, 40, 1)]
PASSES = [(1, torch.bfloat16), (2, torch.float16)]


IN_16_BITS = [(passes, dtype, shape) for passes, dtype in PASSES for shape in TAGS]
# An interpreter takes seconds for each; float16 in one pass differs from bfloat16 by the conversions alone.
IN_16_BITS += [(1, torch.float16, shape) for shape in ([(35, 304, 32)] if triton_here.INTERPRETED else TAGS)]


@implementations("triton_small_vocab")
@pytest.mark.parametrize(
    ("passes", "dtype", "shape"),
    IN_16_BITS,
    ids=lambda each: "x".join(map(str, each)) if isinstance(each, tuple) else str(each),
)
def test_linear_cross_entropy_small_vocab_in_16_bits(impl, passes, dtype, shape, monkeypatch):
    from fangyan_kernels.linear_cross_entropy import triton_small_vocab

    if passes == 2:  # as on a chip with little shared memory
        monkeypatch.setattr(triton_small_vocab, "shared_memory", lambda _: 0)
    tiles = triton_small_vocab.choose_tiles(
        *shape[1:], 2, triton_small_vocab.shared_memory(torch.device("cpu"))
    )
    one_pass = passes == 1 and shape[1] % 16 == 0
    assert isinstance(tiles, triton_small_vocab.Rows if one_pass else triton_small_vocab.Blocks)
    case = make(impl, *shape, dtype=dtype, scale=0.3)
    check_against_truth(impl, case, reduction="mean", **OPTIONS, **weights(case))
    check_against_truth(impl, case, reduction="none")


@implementations("triton_small_vocab")
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("wanted", ["input", "weight", "bias", "nothing"])
def test_linear_cross_entropy_small_vocab_with_some_gradients(impl, passes, wanted, monkeypatch):
    from fangyan_kernels.linear_cross_entropy import triton_small_vocab

    if passes == 2:
        monkeypatch.setattr(triton_small_vocab, "shared_memory", lambda _: 0)
    input, weight, bias, target = make(impl, 50, 80, 9, dtype=torch.bfloat16)
    full = with_gradients(linear_cross_entropy, input, weight, bias, target, impl=impl, reduction="sum")
    leaves = dict(zip(("input", "weight", "bias"), (input, weight, bias), strict=True))
    for name, leaf in leaves.items():
        leaf.requires_grad_(name == wanted)
    loss = linear_cross_entropy(input, weight, target, linear_bias=bias, impl=impl, reduction="sum")
    assert torch.equal(loss, full[0])
    if wanted != "nothing":
        loss.backward(torch.full_like(loss, 0.5))
        assert torch.equal(leaves[wanted].grad, full[1 + list(leaves).index(wanted)])
