"""Every implementation against a float64 truth, within an error budget; see DESIGN's rules."""

import pytest
import torch
import torch.nn.functional as F
from fangyan_kernels import linear_cross_entropy
from hypothesis import given, settings
from hypothesis import strategies as st

IMPLEMENTATIONS = ["reference", "cpp"]
SHAPES = [(1, 1, 1), (1, 63, 7), (3, 1, 5), (63, 256, 188), (1000, 63, 3), (64, 768, 1000)]


def make(tokens, hidden, classes, seed=0, dtype=torch.float32, ignored=0.3, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    input = torch.randn(tokens, hidden, generator=generator, dtype=torch.float64) * scale
    weight = torch.randn(classes, hidden, generator=generator, dtype=torch.float64)
    bias = torch.randn(classes, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, (tokens,), generator=generator)
    target[torch.rand(tokens, generator=generator) < ignored] = -100
    leaves = [tensor.to(dtype).requires_grad_() for tensor in (input, weight, bias)]
    return *leaves, target


def with_gradients(function, input, weight, bias, target, **options):
    loss = function(input, weight, target, linear_bias=bias, **options)
    upstream = torch.linspace(0.5, 1.5, max(loss.numel(), 1), dtype=loss.dtype)[: loss.numel()].reshape(
        loss.shape
    )
    return loss, *torch.autograd.grad(loss, (input, weight, bias), upstream)


def plain(input, head, target, *, linear_bias, **options):
    """The expression in plain PyTorch, in the dtype of its input."""
    return F.cross_entropy(F.linear(input, head, linear_bias), target, **options)


def assert_within_budget(found, same_dtype, truth, scale, what):
    """At most twice the error of the same expression in plain PyTorch, plus one rounding step."""
    budget = 2 * (same_dtype.double() - truth).abs().amax() + torch.finfo(torch.float32).eps * scale
    error = (found.double() - truth).abs().amax()
    assert error <= budget, f"{what}: error {error:.3g}, budget {budget:.3g}"


def check_against_truth(impl, case, **options):
    doubles = [tensor.detach().double().requires_grad_() for tensor in case[:3]]
    truth = with_gradients(plain, *doubles, case[3], **options)
    same_dtype = with_gradients(plain, *case, **options)
    found = with_gradients(linear_cross_entropy, *case, impl=impl, **options)
    for name, *values in zip(
        ("loss", "input", "weight", "bias"),
        found,
        same_dtype,
        truth,
        term_sizes(*doubles, case[3], options["reduction"]),
        strict=True,
    ):
        assert_within_budget(*values, f"{impl} {name}")


@torch.no_grad()
def term_sizes(input, weight, bias, target, reduction):
    """The largest sum of absolute terms behind an element of the loss and of each gradient.

    A rounding step is relative to the terms and not to their sum: logits cancel in the loss, and a
    probability near 1 cancels with the target in its gradient.
    """
    logits = F.linear(input, weight, bias)
    terms = logits.softmax(1)
    labelled = target != -100
    terms[labelled, target[labelled]] += 1.0
    terms = terms * 1.5 * labelled[:, None]
    logits = F.linear(input.abs(), weight.abs(), bias.abs()).amax(1) * labelled
    return (
        logits.sum() if reduction == "sum" else logits.amax(),
        (terms @ weight.abs()).amax(),
        (terms.T @ input.abs()).amax(),
        terms.sum(0).amax(),
    )


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_values_and_gradients(impl, reduction, shape):
    case = make(*shape, ignored=0.0 if shape[0] == 1 else 0.3)
    check_against_truth(impl, case, reduction=reduction, label_smoothing=0.1)


@settings(max_examples=40, deadline=None)
@given(
    impl=st.sampled_from(IMPLEMENTATIONS),
    tokens=st.integers(1, 40),
    hidden=st.integers(1, 40),
    classes=st.integers(1, 70),
    smoothing=st.sampled_from([0.0, 0.2, 1.0]),
    ignored=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 1000),
)
def test_any_shape(impl, tokens, hidden, classes, smoothing, ignored, seed):
    case = make(tokens, hidden, classes, seed, ignored=ignored)
    check_against_truth(impl, case, reduction="none", label_smoothing=smoothing)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_extreme_logits(impl):
    check_against_truth(impl, make(17, 32, 50, scale=300.0), reduction="sum")


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_non_contiguous(impl):
    input, weight, bias, target = make(31, 48, 20)
    strided = torch.stack([input, input], dim=-1)[..., 0].detach().requires_grad_()
    transposed = weight.detach().T.contiguous().T.requires_grad_()
    assert not strided.is_contiguous()
    assert not transposed.is_contiguous()
    check_against_truth(impl, (strided, transposed, bias, target), reduction="sum")


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("tokens", [0, 5])
def test_nothing_labelled_is_zero_and_connected(impl, reduction, tokens):
    input, weight, bias, target = make(tokens, 8, 4)
    target.fill_(-100)
    loss, *gradients = with_gradients(
        linear_cross_entropy, input, weight, bias, target, impl=impl, reduction=reduction
    )
    assert loss.item() == 0.0
    assert all(gradient.abs().sum() == 0 for gradient in gradients)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_ignored_rows_may_hold_anything(impl):
    input, weight, bias, target = make(9, 8, 4, ignored=0.0)
    target[4] = -100
    dirty = input.detach().clone()
    dirty[4] = float("nan")
    clean = with_gradients(
        linear_cross_entropy, input, weight, bias, target, impl="reference", reduction="none"
    )
    found = linear_cross_entropy(dirty, weight, target, linear_bias=bias, impl=impl, reduction="none")
    torch.testing.assert_close(found, clean[0])


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_batched_input_and_no_bias(impl):
    input, weight, _, target = make(12, 8, 5)
    flat = linear_cross_entropy(input, weight, target, reduction="none", impl=impl)
    shaped = linear_cross_entropy(
        input.reshape(3, 4, 8), weight, target.reshape(3, 4), reduction="none", impl=impl
    )
    torch.testing.assert_close(shaped, flat.reshape(3, 4), rtol=0, atol=0)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_class_weights_as_in_torch(reduction):
    input, weight, bias, target = make(30, 16, 6, dtype=torch.float64)
    factor = torch.linspace(0.1, 2.0, 6, dtype=torch.float64)
    options = {"weight": factor, "reduction": reduction, "label_smoothing": 0.1}
    found = linear_cross_entropy(input, weight, target, linear_bias=bias, **options)
    torch.testing.assert_close(found, plain(input, weight, target, linear_bias=bias, **options))


def test_gradcheck():
    input, weight, bias, target = make(7, 5, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *leaves: linear_cross_entropy(
            leaves[0], leaves[1], target, linear_bias=leaves[2], label_smoothing=0.1
        ),
        (input, weight, bias),
    )


def test_opcheck():
    input, weight, bias, target = make(13, 8, 5)
    operator = torch.ops.fangyan.linear_cross_entropy_forward.default
    torch.library.opcheck(operator, (input, weight, bias, target, -100, 0.1))
    torch.library.opcheck(operator, (input, weight, None, target, -100, 0.0))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_compiles_as_one_graph(impl):
    case = make(21, 8, 5)
    compiled = torch.compile(linear_cross_entropy, backend="aot_eager", fullgraph=True)
    found = with_gradients(compiled, *case, impl=impl)
    expected = with_gradients(linear_cross_entropy, *case, impl=impl)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right)


def test_the_same_bits_for_any_number_of_threads():
    input, weight, _, target = make(333, 64, 50)
    threads = torch.get_num_threads()
    try:
        losses = []
        for count in (1, 2):
            torch.set_num_threads(count)
            losses.append(linear_cross_entropy(input, weight, target, reduction="none", impl="cpp"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*losses)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(3, 8, dtype=torch.int64)}, "input is torch.int64"),
        ({"linear_weight": torch.zeros(5, 9)}, r"expected shape \(C, 8\)"),
        ({"linear_weight": torch.zeros(5, 8, dtype=torch.float64)}, "expected input's torch.float32"),
        ({"target": torch.zeros(4, dtype=torch.int64)}, r"expected int64 of shape \(3,\)"),
        ({"target": torch.tensor([0, 5, 1])}, r"target holds 5, expected a class in \[0, 5\)"),
        ({"target": torch.tensor([0, -1, 1])}, "target holds -1"),
        ({"linear_bias": torch.zeros(4)}, r"linear_bias is .* expected shape \(5,\)"),
        (
            {"linear_bias": torch.zeros(5, dtype=torch.float64)},
            "linear_bias is torch.float64, expected input's",
        ),
        ({"weight": torch.zeros(4)}, r"weight is .* expected shape \(5,\)"),
        ({"reduction": "total"}, "reduction is 'total'"),
        ({"label_smoothing": 1.5}, r"label_smoothing is 1.5, expected a number in \[0, 1\]"),
        ({"impl": "cuda"}, "impl is 'cuda'"),
        ({"impl": "cpp", "weight": torch.ones(5)}, "takes no class weights"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {
        "input": torch.zeros(3, 8),
        "linear_weight": torch.zeros(5, 8),
        "target": torch.zeros(3).long(),
    }
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**(arguments | change))


def test_the_operator_itself_never_reads_out_of_bounds():
    with pytest.raises(RuntimeError, match=r"target\[1\] is 9, expected a class in \[0, 5\)"):
        torch.ops.fangyan.linear_cross_entropy_forward(
            torch.zeros(2, 8), torch.zeros(5, 8), None, torch.tensor([0, 9]), -100, 0.0
        )
