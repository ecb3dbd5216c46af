"""Every implementation against a float64 truth, within an error budget."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
import triton_here
from cross_entropy_cases import (
    IGNORE,
    IMPLEMENTATIONS,
    MAX_CLASSES,
    OPTIONS,
    check_against_truth,
    implementations,
    make,
    plain,
    weights,
    with_gradients,
)
from fangyan_kernels import linear_cross_entropy, linear_cross_entropy_with_statistics
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FUSED = IMPLEMENTATIONS[1:]
SHAPES = [(1, 1, 1), (1, 63, 7), (3, 1, 5), (63, 256, 188), (130, 63, 3), (64, 768, 1000)]
LARGE = [(1000, 63, 3), (1000, 300, 188), (100, 768, 21128)]  # an interpreter takes minutes for them


@implementations()
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("shape", SHAPES + LARGE, ids=lambda s: "x".join(map(str, s)))
def test_values_and_gradients(impl, reduction, shape):
    if shape in LARGE and triton_here.INTERPRETED:
        pytest.skip("too large for an interpreter")
    case = make(impl, *shape, ignored=0.0 if shape[0] == 1 else 0.3)
    check_against_truth(impl, case, reduction=reduction)


@implementations("cpp")
@pytest.mark.parametrize("classes", [5, 300])
def test_the_bias_gradient_of_many_tokens(impl, classes):
    """One sum after another over all of them would be several times as far off as eager's."""
    check_against_truth(impl, make(impl, 20000, 8, classes), reduction="sum")


@implementations()
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("classes", [1, 33, 300])
def test_every_option_together(impl, reduction, classes):
    case = make(impl, 70, 40, classes)
    check_against_truth(impl, case, reduction=reduction, **OPTIONS, **weights(case))


@implementations()
@pytest.mark.parametrize("option", [*OPTIONS, "weight", "token_weight"])
def test_every_option_alone(impl, option):
    case = make(impl, 40, 24, 50)
    check_against_truth(impl, case, **{option: (OPTIONS | weights(case))[option]})


@implementations()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("classes", [9, 188, 700])
def test_half_precision(impl, dtype, classes):
    check_against_truth(impl, make(impl, 80, 96, classes, dtype=dtype, scale=0.3), reduction="mean")


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
    softcap=st.sampled_from([None, 5.0]),
    ignored=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 1000),
)
def test_any_shape(impl, tokens, hidden, classes, smoothing, z_loss, softcap, ignored, seed):
    case = make(impl, tokens, hidden, classes, seed, ignored=ignored)
    options = {"label_smoothing": smoothing, "z_loss": z_loss, "softcap": softcap}
    check_against_truth(impl, case, reduction="none", **options)


@implementations()
def test_extreme_logits(impl):
    check_against_truth(impl, make(impl, 17, 32, 50, scale=300.0), reduction="sum")


@implementations()
def test_non_contiguous(impl):
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
def test_nothing_labelled_is_zero_and_connected(impl, reduction, tokens):
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
def test_ignored_rows_may_hold_anything(impl, dtype, classes, value):
    input, weight, bias, target = make(impl, 9, 8, classes, dtype=dtype, ignored=0.0)
    target[4] = IGNORE
    dirty = input.detach().clone()
    dirty[4] = value
    clean = with_gradients(linear_cross_entropy, input, weight, bias, target, impl=impl)
    found = with_gradients(linear_cross_entropy, dirty.requires_grad_(), weight, bias, target, impl=impl)
    for left, right in zip(found, clean, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)
    factor = torch.ones(9, device=target.device)
    factor[4] = float("inf")
    weighted = with_gradients(
        linear_cross_entropy, dirty, weight, bias, target, impl=impl, token_weight=factor
    )
    for left, right in zip(weighted, clean, strict=True):
        torch.testing.assert_close(left, right, rtol=torch.finfo(dtype).eps, atol=1e-7)


@implementations()
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_buffers_are_written_to_their_ends(impl, reduction, monkeypatch):
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
def test_batched_input_and_no_bias(impl):
    input, weight, _, target = make(impl, 12, 8, 5)
    flat = linear_cross_entropy(input, weight, target, reduction="none", impl=impl)
    shaped = linear_cross_entropy(
        input.reshape(3, 4, 8), weight, target.reshape(3, 4), reduction="none", impl=impl
    )
    torch.testing.assert_close(shaped, flat.reshape(3, 4), rtol=0, atol=0)


@implementations()
def test_statistics_come_with_the_loss(impl):
    input, weight, bias, target = make(impl, 50, 16, 6)
    loss, found = linear_cross_entropy_with_statistics(
        input, weight, target, predictions=True, linear_bias=bias, impl=impl
    )
    best = F.linear(input, weight, bias).argmax(1)
    labelled = target != IGNORE
    assert torch.equal(found.predictions, torch.where(labelled, best, IGNORE))
    assert found.num_valid == labelled.sum()
    assert found.num_correct == (best == target)[labelled].sum() > 0
    assert loss.requires_grad
    alone, counts = linear_cross_entropy_with_statistics(input, weight, target, linear_bias=bias, impl=impl)
    assert torch.equal(alone, linear_cross_entropy(input, weight, target, linear_bias=bias, impl=impl))
    assert counts.predictions is None
    assert counts.num_valid == found.num_valid


@implementations()
def test_the_first_of_equal_classes_is_predicted(impl):
    _, _, _, target = make(impl, 8, 4, 16, ignored=0.0)
    input, same = (torch.ones(rows, 4, device=target.device) for rows in (8, 16))
    _, found = linear_cross_entropy_with_statistics(input, same, target, predictions=True, impl=impl)
    assert (found.predictions == 0).all()
    assert found.num_correct == (target == 0).sum()


@implementations()
def test_divisor_takes_the_place_of_the_count(impl):
    case = make(impl, 20, 8, 5)
    by_sum = with_gradients(linear_cross_entropy, *case, reduction="sum", impl=impl)
    for divisor in (7, torch.tensor(7.0, device=case[0].device)):
        found = with_gradients(linear_cross_entropy, *case, divisor=divisor, impl=impl)
        for left, right in zip(found, by_sum, strict=True):
            torch.testing.assert_close(left, right / 7, rtol=1e-6, atol=1e-7)


@implementations(*FUSED)
def test_another_upstream_gradient_and_a_second_backward(impl):
    input, weight, bias, target = make(impl, 30, 16, 6)
    leaves = (input, weight, bias)
    loss = linear_cross_entropy(input, weight, target, linear_bias=bias, impl=impl)
    first = torch.autograd.grad(loss, leaves, torch.full_like(loss, -2.5), retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    second = torch.autograd.grad(loss, leaves, retain_graph=True)
    third = torch.autograd.grad(loss, leaves, torch.full_like(loss, 4.0))
    for scaled, single, again, copy in zip(first, second, third, kept, strict=True):
        assert torch.equal(scaled, copy)  # what was handed out is left alone
        torch.testing.assert_close(scaled, -2.5 * single, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(again, 4.0 * single, rtol=1e-6, atol=1e-8)


@implementations(*FUSED)
def test_no_gradient_of_a_gradient(impl):
    input, weight, _, target = make(impl, 8, 6, 4)
    loss = linear_cross_entropy(input, weight, target, impl=impl)
    with pytest.raises(RuntimeError, match="create_graph=True.* expected impl='reference'"):
        torch.autograd.grad(loss, input, create_graph=True)


@implementations()
def test_float16_gradients_wait_for_the_loss_scale(impl):
    """Of a mean over many tokens most elements are less than the smallest float16."""
    input, weight, bias, target = make(impl, 600, 8, 40, dtype=torch.float16, scale=0.1)
    loss = linear_cross_entropy(input, weight, target, linear_bias=bias, divisor=1e6, impl=impl)
    doubles = [leaf.detach().double().requires_grad_() for leaf in (input, weight, bias)]
    truth = linear_cross_entropy(*doubles[:2], target, linear_bias=doubles[2], divisor=1e6, impl="reference")
    found = torch.autograd.grad(loss, (input, weight, bias), torch.full_like(loss, 2.0**16))
    expected = torch.autograd.grad(truth, doubles, torch.full_like(truth, 2.0**16))
    for left, right in zip(found, expected, strict=True):
        assert (left.double() - right).norm() < 5e-3 * right.norm()


@implementations(*FUSED)
@pytest.mark.parametrize("frozen", ["input", "weight", "bias"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_what_is_frozen_has_no_gradient(impl, frozen, reduction):
    names = ("input", "weight", "bias")
    case = make(impl, 30, 16, 6)
    full = with_gradients(linear_cross_entropy, *case, impl=impl, reduction=reduction)[1:]
    tensors = {name: t.detach().requires_grad_(name != frozen) for name, t in zip(names, case, strict=False)}
    loss = linear_cross_entropy(
        tensors["input"],
        tensors["weight"],
        case[3],
        linear_bias=tensors["bias"],
        impl=impl,
        reduction=reduction,
    )
    upstream = torch.linspace(0.5, 1.5, loss.numel(), device=loss.device).reshape(loss.shape)
    loss.backward(upstream)
    for name, expected in zip(names, full, strict=True):
        if name == frozen:
            assert tensors[name].grad is None
        else:
            torch.testing.assert_close(tensors[name].grad, expected, rtol=1e-6, atol=1e-7)


@implementations(*FUSED)
def test_without_gradients_none_are_computed(impl):
    input, weight, bias, target = make(impl, 30, 16, 6)
    expected = linear_cross_entropy(input, weight, target, linear_bias=bias, impl=impl)
    with torch.no_grad():
        loss = linear_cross_entropy(input, weight, target, linear_bias=bias, impl=impl)
    assert not loss.requires_grad
    assert torch.equal(loss, expected)


@implementations()
def test_the_same_bits_every_time(impl):
    case = make(impl, 150, 40, 60)
    first, second = (with_gradients(linear_cross_entropy, *case, impl=impl) for _ in range(2))
    assert all(map(torch.equal, first, second))


@implementations()
def test_gradients_accumulate(impl):
    """A loss alone has 0.5 for its upstream gradient here; the parts' is 1."""
    input, weight, bias, target = make(impl, 40, 16, 6)
    for part in (slice(0, 25), slice(25, 40)):
        loss = linear_cross_entropy(
            input[part], weight, target[part], linear_bias=bias, divisor=10.0, impl=impl
        )
        loss.backward()
    whole = with_gradients(
        linear_cross_entropy, input, weight, bias, target, divisor=10.0, impl=impl, reduction="mean"
    )
    for leaf, expected in zip((input, weight, bias), whole[1:], strict=True):
        torch.testing.assert_close(leaf.grad, 2 * expected, rtol=1e-5, atol=1e-6)


@implementations()
def test_activation_checkpointing(impl):
    case = make(impl, 20, 8, 5)

    def checkpointed(input, weight, target, **options):
        return torch.utils.checkpoint.checkpoint(
            lambda: linear_cross_entropy(input * 1.0, weight, target, **options), use_reentrant=False
        )

    found = with_gradients(checkpointed, *case, impl=impl)
    for left, right in zip(found, with_gradients(linear_cross_entropy, *case, impl=impl), strict=True):
        assert torch.equal(left, right)


@implementations()
def test_autocast_casts_as_linear_does(impl):
    input, weight, bias, target = make(impl, 20, 8, 5)
    with torch.autocast(input.device.type, torch.bfloat16):
        loss = linear_cross_entropy(input, weight, target, linear_bias=bias, impl=impl)
        expected = F.cross_entropy(F.linear(input, weight, bias).float(), target)
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=2e-2)
    assert loss.dtype == torch.float32
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(loss, (input, weight, bias)))


@implementations("triton_large_vocab")
@pytest.mark.parametrize("more", [0, 3, 100], ids=str)
def test_rows_are_packed_by_the_number_of_labels(impl, more):
    """An upper bound does: what is too much of it is no token."""
    input, weight, bias, target = make(impl, 40, 16, 300, ignored=0.8)
    most = int((target != IGNORE).sum()) + more
    for reduction in ("mean", "none"):
        options = {"impl": impl, "reduction": reduction}
        full = with_gradients(linear_cross_entropy, input, weight, bias, target, **options)
        packed = with_gradients(linear_cross_entropy, input, weight, bias, target, **options, max_valid=most)
        for left, right in zip(packed, full, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)


@implementations("triton_large_vocab")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_triton_chunks_are_summed(impl, dtype, monkeypatch):
    from fangyan_kernels.linear_cross_entropy import triton_large_vocab

    monkeypatch.setattr(triton_large_vocab, "LEAST_CHUNK", 16)
    monkeypatch.setattr(triton_large_vocab, "CHUNK_BYTES", 16 * 300 * dtype.itemsize)
    check_against_truth(impl, make(impl, 50, 16, 300, dtype=dtype), reduction="mean")


@implementations("triton_large_vocab")
def test_no_label_at_all_is_known(impl):
    input, weight, bias, target = make(impl, 9, 8, 300)
    target.fill_(IGNORE)
    found = with_gradients(linear_cross_entropy, input, weight, bias, target, impl=impl, max_valid=0)
    assert all(tensor.abs().sum() == 0 for tensor in found)


@implementations("cpp")
def test_chunks_are_summed(impl):
    """1,100 tokens x 21,128 classes are three chunks."""
    check_against_truth(impl, make(impl, 1100, 9, 21128, ignored=0.1), reduction="mean")


@implementations("cpp")
@pytest.mark.parametrize("threshold", [2**-12, 2**-6])
def test_what_a_filter_leaves_out_is_bounded(impl, threshold):
    """An element is off by at most the threshold times the absolute sum of what it was summed over."""
    input, weight, bias, target = make(impl, 200, 32, 3000, scale=1.5)
    exact = with_gradients(linear_cross_entropy, input, weight, bias, target, impl=impl, reduction="sum")
    found = with_gradients(
        linear_cross_entropy,
        input,
        weight,
        bias,
        target,
        impl=impl,
        reduction="sum",
        gradient_filter=threshold,
    )
    assert torch.equal(found[0], exact[0])
    assert torch.equal(found[3], exact[3])
    labelled = (target != IGNORE)[:, None]
    off_input, off_weight = ((left - right).abs() for left, right in zip(found[1:3], exact[1:3], strict=True))
    slack = 1e-4  # of the two ways to sum
    assert (off_input <= threshold * labelled * weight.abs().sum(0) + slack).all()
    assert (off_weight <= threshold * (labelled * input.abs()).sum(0) + slack).all()
    assert off_weight.amax() > 10 * slack * threshold  # something was left out
    assert (found[1] - exact[1]).norm() < 0.3 * exact[1].norm()


@implementations("cpp")
def test_a_filter_has_nothing_to_leave_out_of_flat_gradients(impl):
    case = make(impl, 50, 8, 300, scale=1e-3)
    exact, found = (
        with_gradients(linear_cross_entropy, *case, impl=impl, gradient_filter=least) for least in (0.0, 1e-4)
    )
    assert all(map(torch.equal, found, exact))


@implementations("cpp")
@pytest.mark.parametrize("classes", [9, 2000])
def test_values_are_right_for_any_number_of_threads(impl, classes):
    case = make(impl, 333, 64, classes)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            check_against_truth(impl, case, reduction="mean")
    finally:
        torch.set_num_threads(threads)


MEMORY = """
import ctypes, gc, re, sys
from pathlib import Path
import torch
import torch.nn.functional as F
from fangyan_kernels import linear_cross_entropy, linear_cross_entropy_with_statistics

def status(field):
    return 1024 * int(re.search(rf"{field}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

def eager(input, weight, target):
    return F.cross_entropy(F.linear(input, weight), target)

leaves = [torch.randn(size, 256).requires_grad_() for size in (2048, 21128)]
target = torch.randint(21128, (2048,))
for function in (eager, linear_cross_entropy):
    for _ in range(2):  # libraries load and threads start in the first call
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        torch.autograd.grad(function(*leaves, target), leaves)
        most = status("VmHWM") - before
    print(most)
"""


def test_cpp_memory_is_a_tenth_of_the_logits():
    """At 2,048 tokens and 21,128 classes, beyond the gradients that any implementation returns."""
    command = [sys.executable, "-c", MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    gradients = 4 * 256 * (2048 + 21128)
    eager, ours = (int(line) - gradients for line in done.stdout.split())
    assert eager > 2 * 4 * 2048 * 21128
    assert ours <= eager / 10, f"{ours / 1e6:.0f} MB, eager takes {eager / 1e6:.0f}"


def test_gradcheck():
    input, weight, bias, target = make("reference", 7, 5, 4, dtype=torch.float64)
    factors = weights((input, weight))
    assert torch.autograd.gradcheck(
        lambda *leaves: linear_cross_entropy(
            leaves[0], leaves[1], target, linear_bias=leaves[2], **OPTIONS, **factors
        ),
        (input, weight, bias),
    )


@pytest.mark.skipif(triton_here.INTERPRETED, reason="the interpreter runs Triton's kernels alone")
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_opcheck(reduction):
    input, weight, bias, target = make("cpp", 13, 8, 5)
    operator = torch.ops.fangyan.linear_cross_entropy.default
    early = reduction != "none"
    options = (reduction, IGNORE, 0.1, 0.0, 0.0, 0.0, None, "auto", True, early, early, early)
    torch.library.opcheck(operator, (input, weight, bias, target, None, None, None, *options))
    frozen = (reduction, IGNORE, 0.0, 0.1, 9.0, 0.0, 13, "auto", False, early, early, False)
    factors = torch.rand(5), torch.rand(13), torch.tensor(3.0)
    torch.library.opcheck(operator, (input, weight, None, target, *factors, *frozen))
    gradients = tuple(torch.rand(3) for _ in range(3))
    torch.library.opcheck(torch.ops.fangyan.scale_gradients_.default, (*gradients, torch.tensor(2.0)))


@implementations()
def test_compiles_as_one_graph_for_any_number_of_tokens(impl):
    torch._dynamo.reset()  # of other implementations
    compiled = torch.compile(linear_cross_entropy, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for tokens in (21, 34, 55):
            case = make(impl, tokens, 8, 5)
            found = with_gradients(compiled, *case, impl=impl)
            expected = with_gradients(linear_cross_entropy, *case, impl=impl)
            for left, right in zip(found, expected, strict=True):
                torch.testing.assert_close(left, right)


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


@pytest.mark.skipif(
    not hasattr(F, "linear_cross_entropy"),
    reason=f"torch {torch.__version__} has no samples of linear_cross_entropy, expected 2.13 or later",
)
@implementations("reference", "cpp")
def test_samples_of_torch(impl):
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(3, 8, dtype=torch.int64)}, "input is torch.int64"),
        ({"linear_weight": torch.zeros(5, 9)}, r"expected shape \(C, 8\)"),
        ({"linear_weight": torch.zeros(5, 8, dtype=torch.float64)}, "expected input's torch.float32"),
        ({"target": torch.zeros(4, dtype=torch.int64)}, r"expected int64 of shape \(3,\)"),
        ({"target": torch.tensor([0, 5, 1])}, r"target holds 5, expected a class in \[0, 5\)"),
        ({"target": torch.tensor([0, -1, 1])}, "target holds -1"),
        ({"target": torch.zeros(3, dtype=torch.int64, device="meta")}, "target is on meta, expected"),
        ({"linear_bias": torch.zeros(4)}, r"linear_bias is .* expected shape \(5,\)"),
        ({"linear_bias": torch.zeros(5, dtype=torch.float64)}, "linear_bias is torch.float64, expected"),
        ({"weight": torch.zeros(4)}, r"weight is .* expected shape \(5,\)"),
        ({"weight": torch.zeros(5, requires_grad=True)}, "weight requires a gradient"),
        ({"token_weight": torch.zeros(4)}, r"token_weight is .* expected shape \(3,\)"),
        ({"reduction": "total"}, "reduction is 'total'"),
        ({"label_smoothing": 1.5}, r"label_smoothing is 1.5, expected a number in \[0, 1\]"),
        ({"z_loss": -1.0}, "z_loss is -1.0, expected 0 or more"),
        ({"softcap": 0.0}, "softcap is 0.0, expected None or more than 0"),
        ({"divisor": 2.0, "reduction": "sum"}, "divisor is given with reduction='sum', expected 'mean'"),
        ({"divisor": torch.ones(2)}, "divisor is .* expected one number"),
        ({"gradient_filter": 1.0}, r"gradient_filter is 1.0, expected a number in \[0, 1\)"),
        ({"max_valid": -1}, "max_valid is -1, expected None, 0 or more"),
        ({"impl": "cuda"}, "impl is 'cuda'"),
        ({"impl": "triton"}, "takes float32, bfloat16 and float16 on cuda, input is torch.float32 on cpu"),
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


def test_cpp_takes_no_float64():
    with pytest.raises(ValueError, match="impl='cpp' takes float32, bfloat16 and float16 on cpu"):
        linear_cross_entropy(*torch.zeros(2, 3, 8, dtype=torch.float64), torch.zeros(3).long(), impl="cpp")


@implementations("triton_small_vocab")
@pytest.mark.parametrize("dtype", MAX_CLASSES, ids=str)
def test_triton_small_vocab_take_few_classes(impl, dtype):
    input, weight, target = torch.zeros(3, 8, dtype=dtype), torch.zeros(40, 8, dtype=dtype), torch.zeros(3)
    message = f"takes {MAX_CLASSES[dtype]} classes of {dtype} at most, linear_weight has 40"
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(input, weight, target.long(), impl=impl)


# Of tokens, hidden size and classes: the one pass in tiles of every width, and more than one tile per
# program; rows that begin at any address take two passes.
TAGS = [(9, 48, 1), (100, 272, 9), (35, 304, 32), (20, 1024, 7), (35, 301, 32), (9, 40, 1)]


@implementations("triton_small_vocab")
@pytest.mark.parametrize(
    ("passes", "dtype"), [(1, torch.bfloat16), (1, torch.float16), (2, torch.float16)], ids=str
)
@pytest.mark.parametrize("shape", TAGS, ids=lambda s: "x".join(map(str, s)))
def test_tags_in_16_bits(impl, passes, dtype, shape, monkeypatch):
    from fangyan_kernels.linear_cross_entropy import triton_small_vocab

    if passes == 2:  # as on a chip with little shared memory
        monkeypatch.setattr(triton_small_vocab, "shared_memory", lambda device: 0)
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
def test_tags_give_the_gradients_asked_for(impl, passes, wanted, monkeypatch):
    from fangyan_kernels.linear_cross_entropy import triton_small_vocab

    if passes == 2:
        monkeypatch.setattr(triton_small_vocab, "shared_memory", lambda device: 0)
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


def heed_assertions(monkeypatch):
    """The interpreter, which skips assertions, then raises what a GPU says of one that fails."""
    from triton.runtime.interpreter import InterpreterOptions, interpreter_builder

    options = InterpreterOptions(debug=True, sanitize_overflow=False)
    monkeypatch.setattr(interpreter_builder, "options", options)


@implementations("triton_small_vocab", "triton_large_vocab")
@pytest.mark.parametrize("wrong", [-1, 12], ids=str)
def test_a_target_that_is_no_class_is_reported(impl, wrong, monkeypatch):
    if not triton_here.INTERPRETED:
        pytest.skip("on a GPU a failed assertion ends the process's use of it")
    heed_assertions(monkeypatch)
    input, weight, _, target = make(impl, 40, 16, 12)
    variant = impl.removeprefix("triton_")
    options = ("mean", IGNORE, 0.0, 0.0, 0.0, 0.0, None, variant, False, False, False, False)
    arguments = (input, weight, None, target, None, None, torch.tensor(3.0, device=input.device), *options)
    torch.ops.fangyan.linear_cross_entropy(*arguments)
    target[17] = wrong
    with pytest.raises(Exception, match="a target is no class"):
        torch.ops.fangyan.linear_cross_entropy(*arguments)


@implementations("triton_small_vocab", "triton_large_vocab")
def test_labels_beyond_max_valid_are_reported(impl, monkeypatch):
    """Instead of a loss without them. The interpreter raises what a GPU's assertion says."""
    if not triton_here.INTERPRETED:
        pytest.skip("on a GPU a failed assertion ends the process's use of it")
    heed_assertions(monkeypatch)
    input, weight, _, target = make(impl, 40, 16, 12, ignored=0.5)
    labelled = int((target != IGNORE).sum())
    linear_cross_entropy(input, weight, target, impl=impl, max_valid=labelled)
    with pytest.raises(Exception, match="max_valid"):
        linear_cross_entropy(input, weight, target, impl=impl, max_valid=labelled - 1)


def test_the_operator_itself_never_reads_out_of_bounds():
    options = ("sum", IGNORE, 0.0, 0.0, 0.0, 0.0, None, "auto", False, False, False, False)
    with pytest.raises(RuntimeError, match=r"target\[1\] is 9, expected a class in \[0, 5\)"):
        torch.ops.fangyan.linear_cross_entropy(
            torch.zeros(2, 8), torch.zeros(5, 8), None, torch.tensor([0, 9]), None, None, None, *options
        )


@pytest.mark.skipif(triton_here.INTERPRETED, reason="an interpreter compiles nothing")
def test_triton_stops_at_a_target_that_is_no_class():
    """The kernel that reads all targets first has an assertion compiled into it, whatever the environment."""
    import triton
    from fangyan_kernels.linear_cross_entropy.triton_shared import sum_target_weights_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    assert sum_target_weights_kernel.debug
    kinds = {"tokens": "i32", "classes": "i32", "ignore_index": "i32", "p_target": "*i64"}
    constants = {"HAS_CLASS_WEIGHT": False, "HAS_TOKEN_WEIGHT": False, "BLOCK": 1024}
    names = sum_target_weights_kernel.arg_names
    signature = {name: "constexpr" if name in constants else kinds.get(name, "*fp32") for name in names}
    source = ASTSource(
        sum_target_weights_kernel, signature, {(names.index(k),): v for k, v in constants.items()}
    )
    ptx = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"debug": True}).asm["ptx"]
    assert "__assertfail" in ptx
    assert "a target is no class" in bytes(map(int, _numbers(ptx))).decode(errors="replace")


def _numbers(ptx):
    """The bytes of the constants, in which a message is spelled."""
    import re

    return [
        number for line in re.findall(r"\.b8 \w+\[\d+\] = \{([\d, ]+)\}", ptx) for number in line.split(",")
    ]


@pytest.mark.parametrize("classes", [33, 188])
def test_tiles_and_products_of_the_cpu_agree(classes):
    """Which of them runs depends on the processor: both are held to float64 here, whatever it is."""
    case = make("cpp", 70, 48, classes)
    exact = with_gradients(plain, *(x.double() if x.is_floating_point() else x for x in case))
    for variant in ("small_vocab", "large_vocab"):
        options = ("mean", IGNORE, 0.0, 0.0, 0.0, 0.0, None, variant, False, True, True, True)
        leaves = [x.detach() for x in case[:3]]
        loss, _, _, _, *gradients = torch.ops.fangyan.linear_cross_entropy(
            *leaves, case[3], None, None, None, *options
        )
        for found, expected in zip((loss, *gradients), exact, strict=True):
            # with_gradients' upstream gradient of a single loss is 0.5
            expected = expected if expected.ndim == 0 else 2 * expected
            torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
