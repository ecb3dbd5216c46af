"""Values and gradients of every implementation against float64, within an error budget."""

import pytest
import torch
import torch.nn.functional as F
import triton_here
from cross_entropy_cases import (
    IGNORE,
    OPTIONS,
    check_against_truth,
    implementations,
    make,
    plain,
    weights,
    with_gradients,
)
from fangyan_kernels import linear_cross_entropy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SHAPES = [(1, 1, 1), (1, 63, 7), (3, 1, 5), (63, 256, 188), (130, 63, 3), (64, 256, 1000)]


# An interpreter takes minutes for them.
LARGE = [(1000, 63, 3), (1000, 300, 188), (64, 768, 1000), (40, 256, 21128)]


def name(shape):
    return "x".join(map(str, shape))


@implementations()
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize(
    "shape", [*SHAPES, *(pytest.param(s, marks=pytest.mark.slow) for s in LARGE)], ids=name
)
def test_linear_cross_entropy_values_and_gradients(impl, reduction, shape):
    if shape in LARGE and triton_here.INTERPRETED:
        pytest.skip("too large for an interpreter")
    case = make(impl, *shape, ignored=0.0 if shape[0] == 1 else 0.3)
    check_against_truth(impl, case, reduction=reduction)


@implementations("cpp")
@pytest.mark.parametrize("classes", [5, 300])
def test_linear_cross_entropy_bias_gradient_of_many_tokens(impl, classes):
    """One sum after another over all of them would be several times as far off as eager's."""
    check_against_truth(impl, make(impl, 20000, 8, classes), reduction="sum")


@implementations()
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("classes", [1, 33, 300])
def test_linear_cross_entropy_with_every_option(impl, reduction, classes):
    case = make(impl, 70, 40, classes)
    check_against_truth(impl, case, reduction=reduction, **OPTIONS, **weights(case))


@implementations()
@pytest.mark.parametrize("option", [*OPTIONS, "weight", "token_weight"])
def test_linear_cross_entropy_with_one_option(impl, option):
    case = make(impl, 40, 24, 50)
    check_against_truth(impl, case, **{option: (OPTIONS | weights(case))[option]})


@implementations()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("classes", [9, 188, 530])
def test_linear_cross_entropy_in_half_precision(impl, dtype, classes):
    case = make(impl, 80, 96, classes, dtype=dtype, scale=0.3)
    # The interpreter takes seconds for each; other scales are in the test of any shape, which it runs too.
    for logit_scale in (3.0,) if triton_here.INTERPRETED else (1.0, 0.125, 3.0):
        check_against_truth(impl, case, reduction="mean", logit_scale=logit_scale)


@implementations()
@settings(
    max_examples=6 if triton_here.INTERPRETED else 30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    tokens=st.integers(1, 40),
    hidden=st.integers(1, 40),
    classes=st.integers(1, 70),
    smoothing=st.sampled_from([0.0, 0.2, 1.0]),
    z_loss=st.sampled_from([0.0, 0.1]),
    logit_scale=st.sampled_from([1.0, 0.0625, 7.0, -0.5]),
    softcap=st.sampled_from([None, 5.0]),
    ignored=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 1000),
)
def test_linear_cross_entropy_of_any_shape(
    impl, tokens, hidden, classes, smoothing, z_loss, logit_scale, softcap, ignored, seed
):
    case = make(impl, tokens, hidden, classes, seed, ignored=ignored)
    options = {"label_smoothing": smoothing, "z_loss": z_loss, "logit_scale": logit_scale, "softcap": softcap}
    check_against_truth(impl, case, reduction="none", **options)


@implementations()
def test_linear_cross_entropy_of_extreme_logits(impl):
    check_against_truth(impl, make(impl, 17, 32, 50, scale=300.0), reduction="sum")


@implementations()
def test_linear_cross_entropy_of_non_contiguous_tensors(impl):
    input, weight, bias, target = make(impl, 31, 48, 20)
    strided = torch.stack([input, input], dim=-1)[..., 0].detach().requires_grad_()
    transposed = weight.detach().T.contiguous().T.requires_grad_()
    every_other = torch.stack([target, target], dim=-1)[..., 0]
    assert not strided.is_contiguous()
    assert not transposed.is_contiguous()
    assert not every_other.is_contiguous()
    check_against_truth(impl, (strided, transposed, bias, every_other), reduction="sum")


@implementations()
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("tokens", [0, 5])
def test_linear_cross_entropy_without_a_valid_target_is_zero(impl, reduction, tokens):
    input, weight, bias, target = make(impl, tokens, 8, 4)
    target.fill_(IGNORE)
    loss, *gradients = with_gradients(
        linear_cross_entropy, input, weight, bias, target, impl=impl, reduction=reduction
    )
    assert loss.abs().sum() == 0.0
    assert all(gradient.abs().sum() == 0 for gradient in gradients)


@implementations()
@pytest.mark.parametrize(
    ("dtype", "classes", "value"),
    [
        (torch.float32, 4, float("nan")),
        (torch.float32, 300, float("inf")),
        (torch.bfloat16, 4, float("nan")),
        (torch.bfloat16, 4, 3e38),  # the logits are not finite, or not, by chance
    ],
    ids=str,
)
def test_linear_cross_entropy_with_nan_in_ignored_rows(impl, dtype, classes, value):
    input, weight, bias, target = make(impl, 9, 8, classes, dtype=dtype, ignored=0.0)
    target[4] = IGNORE
    dirty = input.detach().clone()
    dirty[4] = value
    clean = with_gradients(linear_cross_entropy, input, weight, bias, target, impl=impl)
    found = with_gradients(linear_cross_entropy, dirty.requires_grad_(), weight, bias, target, impl=impl)
    check_against_truth(impl, (input, weight, bias, target), found)
    for name, left, right in zip(("loss", "input", "weight", "bias"), found, clean, strict=True):
        # One computes the weight's gradient again, by a product of its own, which sums in another order.
        if (impl, name) != ("triton_large_vocab", "weight"):
            assert torch.equal(left, right), name
    factor = torch.ones(9, device=target.device)
    factor[4] = float("inf")
    weighted = with_gradients(
        linear_cross_entropy, dirty, weight, bias, target, impl=impl, token_weight=factor
    )
    for left, right in zip(weighted, clean, strict=True):
        torch.testing.assert_close(left, right, rtol=torch.finfo(dtype).eps, atol=1e-7)


@implementations()
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_linear_cross_entropy_with_nan_filled_buffers(impl, reduction):
    """With every new buffer full of NaN, results are the same."""
    case = make(impl, 75, 40, 37)
    clean = with_gradients(linear_cross_entropy, *case, impl=impl, reduction=reduction)
    torch.use_deterministic_algorithms(True)  # new memory is then filled with NaN
    try:
        assert torch.empty(1).isnan().all()
        found = with_gradients(linear_cross_entropy, *case, impl=impl, reduction=reduction)
    finally:
        torch.use_deterministic_algorithms(False)
    for left, right in zip(found, clean, strict=True):
        assert torch.equal(left, right)


@implementations()
def test_linear_cross_entropy_of_batched_input_without_bias(impl):
    input, weight, _, target = make(impl, 12, 8, 5)
    flat = linear_cross_entropy(input, weight, target, reduction="none", impl=impl)
    shaped = linear_cross_entropy(
        input.reshape(3, 4, 8), weight, target.reshape(3, 4), reduction="none", impl=impl
    )
    torch.testing.assert_close(shaped, flat.reshape(3, 4), rtol=0, atol=0)


@implementations()
def test_linear_cross_entropy_is_deterministic(impl):
    case = make(impl, 150, 40, 60)
    first, second = (with_gradients(linear_cross_entropy, *case, impl=impl) for _ in range(2))
    assert all(map(torch.equal, first, second))


@implementations("cpp")
def test_linear_cross_entropy_in_chunks(impl):
    """1,100 tokens x 21,128 classes are three chunks."""
    check_against_truth(impl, make(impl, 1100, 9, 21128, ignored=0.1), reduction="mean", logit_scale=0.5)


@implementations("cpp")
@pytest.mark.parametrize("classes", [9, 2000])
def test_linear_cross_entropy_on_any_number_of_threads(impl, classes):
    case = make(impl, 333, 64, classes)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            check_against_truth(impl, case, reduction="mean", logit_scale=0.5)
    finally:
        torch.set_num_threads(threads)


def samples():
    """PyTorch's own, of both functions, as (input, weight, target, options, their function)."""
    from torch.testing._internal.common_methods_invocations import op_db

    for op in (op for op in op_db if "cross_entropy" in op.name):
        for sample in op.sample_inputs("cpu", torch.float32, requires_grad=True):
            if op.name == "nn.functional.linear_cross_entropy":
                yield sample.input, *sample.args, sample.kwargs, F.linear_cross_entropy
            elif op.name == "nn.functional.cross_entropy":
                logits = sample.input.movedim(1, -1) if sample.input.ndim > 1 else sample.input
                target = sample.args[0]
                if target.is_floating_point() and target.ndim > 1:
                    target = target.movedim(1, -1)
                eye = torch.eye(logits.shape[-1])
                yield logits, eye, target, sample.kwargs, None


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(F, "linear_cross_entropy"),
    reason=f"torch {torch.__version__} has no samples of linear_cross_entropy, expected 2.13 or later",
)
@implementations("reference", "cpp")
def test_linear_cross_entropy_on_samples_of_torch(impl):
    """Class indices for a matrix of weights agree; what else torch takes is refused in a sentence."""
    pytest.importorskip("expecttest")  # PyTorch's samples import it
    agreed = refused = 0
    for input, weight, target, options, theirs in samples():
        options = {name: value for name, value in options.items() if name != "options"}
        options.pop("size_average", None), options.pop("reduce", None)
        factor = options.get("weight")
        if factor is not None:
            options["weight"] = factor.detach()
        if target.is_floating_point() or weight.ndim != 2:
            with pytest.raises(ValueError, match="expected"):
                linear_cross_entropy(input, weight, target, **options, impl=impl)
            refused += 1
            continue
        bias = options.pop("linear_bias", None)
        logits = F.linear(input, weight, bias).movedim(-1, min(1, input.ndim - 1))
        expected = (
            F.cross_entropy(logits, target, **options)
            if theirs is None
            else theirs(input, weight, target, linear_bias=bias, **options)
        )
        found = linear_cross_entropy(input, weight, target, linear_bias=bias, **options, impl=impl)
        if not expected.isfinite().all():  # no target counts
            assert found.isfinite().all()
            continue
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        leaves = [leaf for leaf in (input, weight, bias) if leaf is not None and leaf.requires_grad]
        pair = (torch.autograd.grad(loss.sum(), leaves) for loss in (found, expected))
        for left, right in zip(*pair, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)
        agreed += 1
    assert agreed >= 100
    assert refused >= 20


@pytest.mark.parametrize("classes", [33, 188])
def test_linear_cross_entropy_variants_on_the_cpu_agree(classes):
    """Which of them runs depends on the processor: both are held to float64 here, whatever it is."""
    case = make("cpp", 70, 48, classes)
    doubles = (x.double() if x.is_floating_point() else x for x in case)
    exact = with_gradients(plain, *doubles, logit_scale=0.5)
    for variant in ("small_vocab", "large_vocab"):
        options = ("mean", IGNORE, 0.0, 0.0, 0.5, 0.0, 0.0, None, variant, False, True, True, True)
        leaves = [x.detach() for x in case[:3]]
        loss, _, _, _, *gradients = torch.ops.fangyan.linear_cross_entropy(
            *leaves, case[3], None, None, None, *options
        )
        for found, expected in zip((loss, *gradients), exact, strict=True):
            # with_gradients' upstream gradient of a single loss is 0.5
            expected = expected if expected.ndim == 0 else 2 * expected
            torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
