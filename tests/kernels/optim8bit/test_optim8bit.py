"""The C++ step against its reference, against bitsandbytes state by state, and against AdamW in float64."""

import copy
import math

import fangyan_kernels
import pytest
import torch
import triton_here
from hypothesis import given, settings
from hypothesis import strategies as st

bnb = pytest.importorskip("bitsandbytes")  # the optimizers are subclasses of its own

from bitsandbytes.functional import create_dynamic_map  # noqa: E402
from fangyan_kernels import Adam8bit, AdamW8bit, AdEMAMix8bit, Lion8bit  # noqa: E402
from fangyan_kernels.optim8bit import reference  # noqa: E402

if triton_here.INTERPRETED:
    pytest.skip("the interpreter runs Triton's kernels alone", allow_module_level=True)

SIGNED, UNSIGNED = create_dynamic_map(signed=True), create_dynamic_map(signed=False)
OURS = {"adamw": AdamW8bit, "adam": Adam8bit, "lion": Lion8bit, "ademamix": AdEMAMix8bit}
THEIRS = {
    "adamw": bnb.optim.AdamW8bit,
    "adam": bnb.optim.Adam8bit,
    "lion": bnb.optim.Lion8bit,
    "ademamix": bnb.optim.AdEMAMix8bit,
}
SIZES = [1, 255, 256, 257, 1000, 70_001]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KEYS = ("state1", "state2", "absmax1", "absmax2")


def gradients(size, steps, dtype=torch.float32, seed=0, spread=1.0):
    """As in training: of every size, a block's among themselves."""
    generator = torch.Generator().manual_seed(seed)
    scale = (spread * torch.randn(size, generator=generator)).exp()
    return [(scale * torch.randn(size, generator=generator)).to(dtype) for _ in range(steps)]


def run(make, start, steps, **settings):
    parameter = torch.nn.Parameter(start.clone())
    optimizer = make([parameter], lr=0.01, min_8bit_size=0, **settings)
    for gradient in steps:
        parameter.grad = gradient
        optimizer.step()
    return parameter.detach(), optimizer


def decoded(state, k):
    codes, scales = state[f"state{k}"], state[f"absmax{k}"]
    if codes.ndim > scales.ndim:
        scales = scales.view(-1)
    parts = codes.view(scales.shape[0], -1) if scales.ndim == 2 else codes.view(1, -1)
    return torch.stack(
        [
            reference.dequantize(part, scale, state[f"qmap{k}"])
            for part, scale in zip(parts, scales.view(len(parts), -1), strict=True)
        ]
    )


def test_the_map_is_bitsandbytes_own():
    _, optimizer = run(AdamW8bit, torch.zeros(256), gradients(256, 1))
    (state,) = optimizer.state.values()
    assert torch.equal(state["qmap1"], SIGNED)
    assert torch.equal(state["qmap2"], UNSIGNED)


def values_next_to_middles(qmap):
    """Every float within 300 of a place where the code changes, and others of every size."""
    middles = ((qmap[:-1] + qmap[1:]) / 2).view(torch.int32)
    near = (middles[:, None] + torch.arange(-300, 301, dtype=torch.int32)).flatten().view(torch.float32)
    generator = torch.Generator().manual_seed(1)
    other = 10 ** (-9 * torch.rand(1_000_000, generator=generator))
    if qmap[0] < 0:
        other *= torch.randint(0, 2, (len(other),), generator=generator) * 2 - 1
    return torch.cat([near, other, torch.tensor([0.0, 1.0, -1.0 if qmap[0] < 0 else 1.0, 1e-30])])


@pytest.mark.parametrize("k", [1, 2], ids=["signed", "unsigned"])
def test_codes_are_exactly_the_references(k):
    """With no memory, averages are the gradient and its square: whatever is to be encoded can be chosen."""
    values = values_next_to_middles(SIGNED if k == 1 else UNSIGNED)
    values = values[: len(values) // 255 * 255].view(-1, 255)
    values = torch.cat([values, torch.ones(len(values), 1)], 1).flatten()  # each block's scale is 1
    if k == 2:
        values = values.abs().sqrt()
    states = [torch.zeros(len(values), dtype=torch.uint8) for _ in range(2)]
    scales = [torch.zeros(len(values) // 256) for _ in range(2)]
    arguments = (*states, *scales, SIGNED, UNSIGNED, None, 0.0, 0.0, 0.0, 0.0, 0.0, 1e-8, 0.0, 1)
    torch.ops.fangyan.optimizer_step_("adam", torch.zeros_like(values), values, *arguments)
    expected = (values, SIGNED) if k == 1 else (values * values, UNSIGNED)
    codes, absmax = reference.quantize(*expected)
    assert torch.equal(states[k - 1], codes)
    assert torch.equal(scales[k - 1], absmax)


@pytest.mark.parametrize("k", [1, 2], ids=["signed", "unsigned"])
def test_every_code_is_decoded(k):
    """With no new gradient and betas of 1 every state is what it was, and so is its code."""
    qmap = SIGNED if k == 1 else UNSIGNED
    codes, scale = torch.arange(256, dtype=torch.uint8), torch.tensor([0.37])
    states = [torch.zeros(256, dtype=torch.float32) for _ in range(2)]
    for beta in (1.0, 0.5):
        both = [codes.clone() if k == 1 else torch.full((256,), 127, dtype=torch.uint8), codes.clone()]
        scales = [scale.clone(), scale.clone()]
        arguments = (*both, *scales, SIGNED, UNSIGNED, None, 0.0, beta, beta, 0.0, 0.0, 1e-8, 0.0, 1)
        torch.ops.fangyan.optimizer_step_("adam", states[0], states[1], *arguments)
        found = reference.dequantize(both[k - 1], scales[k - 1], qmap)
        expected = beta * qmap * scale
        if k == 2:
            expected[0] = expected[1]  # there is no 0 among averages of squares
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=0.0)


@pytest.mark.parametrize("algorithm", OURS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_the_reference(algorithm, size, dtype):
    """Step by step from the same states: but for sums whose last bit is another, the same codes."""
    start = torch.randn(size, generator=torch.Generator().manual_seed(9)).to(dtype)
    ours, other = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    settings = {"lr": 0.01, "weight_decay": 0.1, "min_8bit_size": 0}
    optimizer, plain = (
        OURS[algorithm]([ours], **settings),
        OURS[algorithm]([other], impl="reference", **settings),
    )
    for number, gradient in enumerate(gradients(size, 4, dtype)):
        ours.grad, other.grad = gradient, gradient
        if number:
            plain.state[other] = copy.deepcopy(optimizer.state[ours])
            other.data.copy_(ours.data)
        optimizer.step()
        plain.step()
        torch.testing.assert_close(ours, other, rtol=2 * torch.finfo(dtype).eps, atol=2e-7)
        found, expected = optimizer.state[ours], plain.state[other]
        assert found["step"] == expected["step"] == number + 1
        for k in _kept(algorithm):
            torch.testing.assert_close(found[f"absmax{k}"], expected[f"absmax{k}"], rtol=1e-6, atol=0.0)
            apart = (found[f"state{k}"].int() - expected[f"state{k}"].int()).abs()
            assert apart.max() <= 1
            assert apart.double().mean() < 1e-3


@pytest.mark.parametrize("algorithm", OURS)
@pytest.mark.parametrize("rate", [0.0, 1e-44])
def test_without_a_rate_states_alone_move(algorithm, rate):
    """As in a warm-up's first step; among the gradients are zeros, which have averages of 0."""
    start = torch.randn(1000, generator=torch.Generator().manual_seed(9))
    (gradient,) = gradients(1000, 1)
    gradient[:300] = 0.0
    parameter = torch.nn.Parameter(start.clone())
    optimizer = OURS[algorithm]([parameter], lr=rate, weight_decay=0.1, min_8bit_size=0)
    parameter.grad = gradient
    optimizer.step()
    assert torch.equal(parameter.detach(), start)
    assert optimizer.state[parameter]["absmax1"].flatten()[2] > 0


@pytest.mark.parametrize("algorithm", OURS)
def test_bitsandbytes_state_by_state(algorithm):
    """Each step from its own states: the same parameters, and averages stored no worse than there."""
    size, settings = 20_000, {"weight_decay": 0.1}
    start = torch.randn(size, generator=torch.Generator().manual_seed(9))
    theirs, ours = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    bits = THEIRS[algorithm]([theirs], lr=0.01, **settings)
    own = OURS[algorithm]([ours], lr=0.01, **settings)
    for gradient in gradients(size, 30):
        if theirs in bits.state:
            before = {
                key: decoded(bits.state[theirs], k)
                for key, k in (("first", 1), ("second", 2))
                if k in _kept(algorithm)
            }
            own.state[ours] = copy.deepcopy(bits.state[theirs])
            ours.data.copy_(theirs.data)
        else:
            before = {
                "first": torch.zeros(2 if algorithm == "ademamix" else 1, size),
                "second": torch.zeros(1, size),
            }
        theirs.grad, ours.grad = gradient, gradient
        bits.step()
        own.step()
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-7)
        exact = _averaged(algorithm, before, gradient, bits.param_groups[0]["betas"])
        for k in _kept(algorithm):
            assert torch.equal(own.state[ours][f"qmap{k}"], bits.state[theirs][f"qmap{k}"])
            torch.testing.assert_close(
                own.state[ours][f"absmax{k}"], bits.state[theirs][f"absmax{k}"], rtol=1e-6, atol=0.0
            )
            error, other = ((decoded(s, k) - exact[k]).abs() for s in (own.state[ours], bits.state[theirs]))
            scale = own.state[ours][f"absmax{k}"].view(len(exact[k]), -1).repeat_interleave(256, 1)[:, :size]
            assert (error <= other + 1e-6 * scale).all()


def _kept(algorithm):
    return (1,) if algorithm == "lion" else (1, 2)


def _averaged(algorithm, before, gradient, betas):
    beta = betas[1] if algorithm == "lion" else betas[0]
    first = [beta * before["first"][0] + (1 - beta) * gradient]
    if algorithm == "ademamix":
        first.append(betas[2] * before["first"][1] + (1 - betas[2]) * gradient)
    exact = {1: torch.stack(first)}
    if algorithm != "lion":
        exact[2] = betas[1] * before["second"] + (1 - betas[1]) * gradient**2
    return exact


@pytest.mark.parametrize(("spread", "bound"), [(0.0, 0.025), (1.0, 0.09), (2.0, 0.4)])
def test_adamw_in_float64_within_the_error_of_quantization(spread, bound):
    """The way of parameters over many steps is nearer to the exact one than bitsandbytes' is.

    The more a block's gradients differ in size, the less 256 codes hold of the small ones' squares.
    """
    size = 20_000
    start = torch.randn(size, generator=torch.Generator().manual_seed(9))
    steps = gradients(size, 100, spread=spread)
    exact = torch.nn.Parameter(start.double())
    optimizer = torch.optim.AdamW([exact], lr=0.01, weight_decay=0.01)
    for gradient in steps:
        exact.grad = gradient.double()
        optimizer.step()
    ours, theirs = (
        float((run(make, start, steps)[0] - exact.detach()).norm() / (exact.detach() - start).norm())
        for make in (AdamW8bit, bnb.optim.AdamW8bit)
    )
    assert ours < bound
    assert ours < 1.01 * theirs


@pytest.mark.parametrize("algorithm", OURS)
def test_checkpoints_go_both_ways(algorithm, tmp_path):
    """Through a file, in the middle of a training, from bitsandbytes to here and back: to the same losses."""

    def trained(first, then):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(80, 100), torch.nn.GELU(), torch.nn.Linear(100, 1))
        data = torch.randn(200, 80)
        target = data[:, :1] * data[:, 1:2]
        losses = []
        for number, make in enumerate((first, then)):
            optimizer = make(model.parameters(), lr=1e-3)
            if number:
                optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
            for _ in range(12):
                loss = torch.nn.functional.mse_loss(model(data), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
        return torch.tensor(losses), torch.load(tmp_path / "optimizer.pt")

    ways = [
        (THEIRS[algorithm], THEIRS[algorithm]),
        (THEIRS[algorithm], OURS[algorithm]),
        (OURS[algorithm], THEIRS[algorithm]),
        (OURS[algorithm], OURS[algorithm]),
    ]
    (expected, layout), *others = (trained(*way) for way in ways)
    assert expected[-1] < 0.95 * expected[0]
    for losses, checkpoint in others:
        torch.testing.assert_close(losses, expected, rtol=0.03, atol=1e-3)
        assert _layout(checkpoint) == _layout(layout)


def _layout(tree):
    if isinstance(tree, dict):
        return {key: _layout(value) for key, value in tree.items()}
    return (tree.dtype, tree.shape) if isinstance(tree, torch.Tensor) else type(tree)


def test_small_parameters_and_overrides_have_32_bits(monkeypatch):
    small, told, large = (torch.nn.Parameter(torch.randn(size)) for size in (4095, 5000, 5000))
    manager = bnb.optim.GlobalOptimManager.get_instance()
    # It knows parameters by id() and forgets none, so that a later test's could be taken for this one.
    monkeypatch.setattr(manager, "pid2config", {})
    manager.override_config(told, "optim_bits", 32)
    optimizer = AdamW8bit([small, told, large])
    reference_step = torch.optim.AdamW([told.detach().clone().requires_grad_()], lr=1e-3, weight_decay=1e-2)
    (copied,) = reference_step.param_groups[0]["params"]
    for gradient in gradients(5000, 5):
        small.grad, told.grad, large.grad, copied.grad = gradient[:4095], gradient, gradient, gradient
        optimizer.step()
        reference_step.step()
    kinds = [optimizer.state[p]["state1"].dtype for p in (small, told, large)]
    assert kinds == [torch.float32, torch.float32, torch.uint8]
    torch.testing.assert_close(told.data, copied.data, rtol=1e-6, atol=1e-6)


def test_a_state_takes_two_bytes():
    _, optimizer = run(AdamW8bit, torch.zeros(1_000_000), gradients(1_000_000, 1))
    (state,) = optimizer.state.values()
    assert sum(state[key].nbytes for key in KEYS) < 2.1 * 1_000_000


@pytest.mark.parametrize("algorithm", OURS)
def test_the_same_bits_on_any_number_of_threads(algorithm):
    start, steps = torch.randn(300_001), gradients(300_001, 3)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            parameter, optimizer = run(OURS[algorithm], start, steps)
            (state,) = optimizer.state.values()
            results.append([parameter, *[state[key] for key in KEYS if key in state]])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


# The last has an infinite square, which Lion does not take.
NO_GRADIENTS = [(algorithm, bad) for algorithm in OURS for bad in (float("nan"), float("inf"), -float("inf"))]
NO_GRADIENTS += [(algorithm, 1e30) for algorithm in OURS if algorithm != "lion"]


@pytest.mark.parametrize(("algorithm", "bad"), NO_GRADIENTS)
@pytest.mark.parametrize("bits", [8, 32])
def test_a_gradient_that_is_none_stays_alone(algorithm, bits, bad):
    """Its number keeps its value, the others take the steps that they take without it, and it is counted."""
    size, at = 1000, [5, 600, 999]
    start, steps = torch.randn(size), gradients(size, 3)
    whole = [step.clone() for step in steps]
    for step in whole:
        step[at] = 0.0
    spoilt = [step.clone() for step in whole]
    spoilt[1][at] = bad
    settings = {"min_8bit_size": 0 if bits == 8 else 10_000}
    results = []
    for gradient, impl in ((whole, "auto"), (spoilt, "auto"), (spoilt, "reference")):
        parameter = torch.nn.Parameter(start.clone())
        optimizer = OURS[algorithm]([parameter], lr=0.01, impl=impl, **settings)
        left, values = [], []
        for step in gradient:
            parameter.grad = step
            optimizer.step()
            left.append(optimizer.num_skipped)
            values.append(parameter.detach().clone())
        results.append((left, values, optimizer.state[parameter]))
    (_, expected, state), (left, found, other), (left_there, *_) = results
    assert left == left_there == [0, 3, 0]
    assert torch.equal(found[1][at], found[0][at])
    rest = torch.ones(size, dtype=torch.bool)
    rest[at] = False
    assert torch.equal(found[2][rest], expected[2][rest])
    for key in KEYS:
        if key in state:
            assert torch.equal(other[key], state[key])


def test_ademamix_warms_up_as_bitsandbytes_does():
    """In 32 bits, where bitsandbytes is exact."""
    settings = {"t_alpha": 20, "t_beta3": 20, "lr": 0.01, "min_8bit_size": 10_000}
    start, steps = torch.randn(3000), gradients(3000, 10)
    results = []
    for make in (AdEMAMix8bit, bnb.optim.AdEMAMix8bit):
        parameter = torch.nn.Parameter(start.clone())
        optimizer = make([parameter], **settings)
        for gradient in steps:
            parameter.grad = gradient
            optimizer.step()
        results.append(parameter.detach())
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@given(size=st.integers(1, 1500), scale=st.floats(1e-25, 1e15), steps=st.integers(1, 3))
@settings(max_examples=50)
def test_any_size_and_scale(size, scale, steps):
    start = torch.randn(size)
    some = [scale * step for step in gradients(size, steps, seed=size)]
    found, expected = (run(AdamW8bit, start, some, impl=impl)[0] for impl in ("cpp", "reference"))
    assert torch.isfinite(found).all()
    # A code that differs by one moves a step by a hundredth of the rate.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)


def test_an_odd_layout():
    values = torch.randn(300, 70)
    parameter = torch.nn.Parameter(values.t().contiguous().t())
    assert not parameter.is_contiguous()
    optimizer = AdamW8bit([parameter], lr=0.01)
    parameter.grad = torch.randn(70, 300).t()
    expected, _ = run(AdamW8bit, values, [parameter.grad.contiguous()])
    optimizer.step()
    assert torch.equal(parameter.detach(), expected)


@pytest.mark.parametrize("algorithm", ["adam", "lion", "ademamix"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_gradients_scale_is_that_of_the_gradient(algorithm, dtype):
    """With 32-bit states, as a step of bfloat16 gradients with float32 weights has them."""
    gradient = torch.randn(700).to(dtype)
    found = []
    for function, scaled, scale in (
        (torch.ops.fangyan.optimizer_step_, gradient, 0.3),
        (reference.optimizer_step_, gradient.float() * 0.3, 1.0),
        (reference.optimizer_step_, gradient, 0.3),
    ):
        parameter, copy = torch.linspace(-1, 1, 700), torch.zeros(700, dtype=torch.bfloat16)
        first = torch.full((1400 if algorithm == "ademamix" else 700,), 0.1)
        second = None if algorithm == "lion" else torch.full((700,), 0.2)
        numbers = (0.01, 0.9, 0.99, 0.999, 2.0, 1e-8, 0.1, 3, scale)
        assert (
            function(algorithm, parameter, scaled, first, second, None, None, None, None, copy, *numbers) == 0
        )
        assert torch.equal(copy, parameter.bfloat16())
        found.append([parameter, first, *([] if second is None else [second])])
    for one, other, third in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(third, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sum_of_squares(dtype):
    tensors = [torch.randn(size).to(dtype) for size in (0, 1, 17, 100_000, 400_000)]
    expected = sum(tensor.double().square().sum().item() for tensor in tensors)
    found = torch.ops.fangyan.sum_of_squares(tensors)
    assert found == pytest.approx(expected, rel=1e-12)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert torch.ops.fangyan.sum_of_squares(tensors) == found
    torch.set_num_threads(threads)
    tensors[1][0] = float("nan")
    assert math.isnan(torch.ops.fangyan.sum_of_squares(tensors))


def test_opcheck():
    states = [torch.zeros(300, dtype=torch.uint8) for _ in range(2)]
    scales = [torch.zeros(2) for _ in range(2)]
    arguments = (*states, *scales, SIGNED, UNSIGNED, None, 0.01, 0.9, 0.999, 0.0, 0.0, 1e-8, 0.0, 1)
    torch.library.opcheck(
        torch.ops.fangyan.optimizer_step_.default,
        ("adam", torch.randn(300), torch.randn(300), *arguments),
        test_utils=("test_schema",),
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"qmap1": torch.linspace(-1, 1, 256)}, "map of state1 is not bitsandbytes' dynamic map"),
        ({"state2": torch.zeros(299, dtype=torch.uint8)}, "expected state2 contiguous, of 300 numbers"),
        ({"state2": torch.zeros(300)}, "expected state2 of state1's type"),
        ({"absmax1": None}, "expected scales and a map with the codes of state1"),
        ({"parameter": torch.zeros(300, dtype=torch.float64)}, "expected parameter in float32, bfloat16 or"),
        ({"algorithm": "sgd"}, "algorithm is sgd, expected adam, lion or ademamix"),
    ],
)
def test_what_the_operator_refuses(change, sentence):
    arguments = {
        "algorithm": "adam",
        "parameter": torch.zeros(300),
        "gradient": torch.zeros(300),
        "state1": torch.zeros(300, dtype=torch.uint8),
        "state2": torch.zeros(300, dtype=torch.uint8),
        "absmax1": torch.zeros(2),
        "absmax2": torch.zeros(2),
        "qmap1": SIGNED,
        "qmap2": UNSIGNED,
    }
    with pytest.raises(RuntimeError, match=sentence):
        torch.ops.fangyan.optimizer_step_(
            *(arguments | change).values(), None, 0.01, 0.9, 0.999, 0.0, 0.0, 1e-8, 0.0, 1
        )


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="impl is 'cuda', expected one of auto, reference, cpp"):
        AdamW8bit([torch.nn.Parameter(torch.zeros(3))], impl="cuda")
    with pytest.raises(AttributeError, match="no attribute 'Adam4bit'"):
        getattr(fangyan_kernels, "Adam4bit")  # noqa: B009
