"""Several projections of one input against each alone."""

import pytest
import torch
from fangyan_kernels import lora_linear
from fangyan_kernels.lora_linear import reference
from fangyan_kernels.testing.error_budget import assert_within_error_budget
from lora_cases import FUSED, SCALING, implementations, make, ours, plain, seeded


@implementations("cpp")
@pytest.mark.parametrize("given", ["whole", "transposed", "frozen input"])
def test_lora_linear_of_projections_with_dropout_in_bfloat16(impl, given):
    """Their part of the input's gradient is dropped as one, whatever the strides."""
    cases = [make(impl, 300, 63, outer, rank, torch.bfloat16, outer) for outer, rank in ((32, 4), (48, 9))]
    if given == "transposed":
        cases[0][0] = cases[0][0].detach().T.contiguous().T.requires_grad_()
    input = cases[0][0].requires_grad_(given != "frozen input")
    keep = reference.keep_mask(seeded(), 300, 63, 0.3).double() / 0.7

    def gradients(leaves, one_by_one):
        x, *rest = leaves
        first, second = rest[:4], rest[4:]
        if one_by_one:
            outputs = [plain(x, *layer, keep=keep) for layer in (first, second)]
        else:
            pairs = [list(pair) for pair in zip(first, second, strict=True)]
            options = {"scaling": SCALING, "dropout": 0.3, "impl": impl}
            outputs = list(lora_linear(x, *pairs[:3], bias=pairs[3], **options))
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        return [*outputs, *torch.autograd.grad(sum(o.square().sum() for o in outputs), wanted)]

    leaves = [input, *cases[0][1:], *cases[1][1:]]
    wide = [leaf.detach().double().requires_grad_(leaf.requires_grad) for leaf in leaves]
    found, other, truth = gradients(leaves, False), gradients(leaves, True), gradients(wide, True)
    for number, (value, alone, exact) in enumerate(zip(found, other, truth, strict=True)):
        assert_within_error_budget(value, alone, exact, f"result {number}")


@implementations(*FUSED)
@pytest.mark.parametrize("tokens", [5, 300])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("ranks", [(4, 2, 8), (100, 120, 60)], ids=str)
def test_lora_linear_of_projections(impl, tokens, dropout, ranks):
    """As the same layers one by one, with one mask for all; also with ranks too large for one pass."""
    sizes = zip((32, 16, 48), ranks, strict=True)
    cases = [make(impl, tokens, 32, outer, rank, seed=outer) for outer, rank in sizes]
    input = cases[0][0]
    seeded()
    together = lora_linear(
        input,
        [case[1] for case in cases],
        [case[2] for case in cases],
        [case[3] for case in cases],
        bias=[case[4] for case in cases],
        scaling=[1.0, 0.5, 2.0],
        dropout=dropout,
        impl=impl,
    )
    apart = []
    for case, scaling in zip(cases, (1.0, 0.5, 2.0), strict=True):
        seeded()
        apart.append(ours(input, *case[1:], scaling=scaling, dropout=dropout, impl=impl))
    assert isinstance(together, tuple)
    # Passes over all layers sum in another order: held, as each layer is, to the truth in float64.
    wide = [[t.detach().double().requires_grad_(t.requires_grad) for t in case] for case in cases]
    exact = []
    for case, scaling in zip(wide, (1.0, 0.5, 2.0), strict=True):
        seeded()
        one = [wide[0][0], *case[1:]]
        exact.append(ours(*one, scaling=scaling, dropout=dropout, impl="reference"))
    found, other, truth = (
        [*outputs, *torch.autograd.grad(sum(o.square().sum() for o in outputs), leaves)]
        for outputs, leaves in (
            (together, _leaves(cases)),
            (apart, _leaves(cases)),
            (exact, _leaves(wide)),
        )
    )
    for number, (value, alone, exact) in enumerate(zip(found, other, truth, strict=True)):
        assert_within_error_budget(value, alone, exact, f"result {number}")


def _leaves(cases):
    return [cases[0][0], *[tensor for case in cases for tensor in case[2:]]]
