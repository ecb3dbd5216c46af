"""Every implementation against a float64 truth, within an error budget; PEFT and bitsandbytes as oracles."""

import pytest
import torch
import torch.nn.functional as F
import triton_here
from fangyan_kernels import lora_linear
from fangyan_kernels.lora_linear import reference
from fangyan_kernels.testing.error_budget import assert_within_error_budget
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

IMPLEMENTATIONS = ["reference", "cpp", "triton"]
FUSED = IMPLEMENTATIONS[1:]
# T, K, N, R: both sides of the number of tokens from which a weight is merged.
SHAPES = [(1, 1, 1, 1), (3, 63, 5, 2), (130, 63, 48, 3), (97, 16, 100, 16), (300, 64, 17, 40)]
LARGE = [(1000, 256, 1000, 8), (64, 300, 63, 256)]
SCALING = 0.7


@pytest.fixture
def impl(request, monkeypatch):
    """An implementation, where this machine can run it."""
    if request.param == "triton" and triton_here.MISSING:
        pytest.skip(triton_here.MISSING)
    if request.param != "triton" and triton_here.INTERPRETED:
        pytest.skip("the interpreter runs Triton's kernels alone")
    with triton_here.on_the_cpu(monkeypatch) if request.param == "triton" else torch.enable_grad():
        yield request.param


def implementations(*names):
    return pytest.mark.parametrize("impl", names or IMPLEMENTATIONS, indirect=True)


def make(impl, tokens, inner, outer, rank, dtype=torch.float32, seed=0):
    """input, weight, A, B, bias; the weight frozen."""
    device = triton_here.DEVICE if impl == "triton" else "cpu"
    generator = torch.Generator().manual_seed(seed)
    sizes = ((tokens, inner), (outer, inner), (rank, inner), (outer, rank), (outer,))
    noise = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    return [
        tensor.to(device, dtype).requires_grad_(number != 1)  # the weight is frozen
        for number, tensor in enumerate(noise)
    ]


def plain(input, weight, a, b, bias, keep=None, scaling=SCALING):
    dropped = input if keep is None else input * keep.to(input.dtype)
    return F.linear(input, weight, bias) + scaling * F.linear(F.linear(dropped, a), b)


def with_gradients(function, case, **options):
    output = function(*case, **options)
    upstream = torch.linspace(-1.0, 1.5, output.numel(), dtype=torch.float64, device=output.device)
    leaves = [tensor for tensor in case if tensor.requires_grad]
    gradients = torch.autograd.grad(output, leaves, upstream.reshape(output.shape).to(output.dtype))
    return output, *gradients


def ours(input, weight, a, b, bias, **options):
    return lora_linear(input, weight, a, b, bias=bias, **{"scaling": SCALING, **options})


def check_against_truth(impl, case, keep=None, **options):
    wide = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in case]
    truth = with_gradients(plain, wide, keep=keep)
    same_dtype = with_gradients(plain, case, keep=keep)
    found = with_gradients(ours, case, impl=impl, **options)
    sizes = with_gradients(plain, [t.abs().detach().requires_grad_(t.requires_grad) for t in wide], keep=keep)
    for name, value, other, exact, size in zip(
        ("output", "input", "A", "B", "bias"), found, same_dtype, truth, sizes, strict=True
    ):
        # A rounding step is relative to the terms of a sum, not to the sum.
        assert_within_error_budget(
            value, other, exact, f"{impl} {name}", term_size=size.detach().abs().amax()
        )


@implementations()
@pytest.mark.parametrize("shape", SHAPES + LARGE, ids=lambda s: "x".join(map(str, s)))
def test_values_and_gradients(impl, shape):
    if impl == "triton" and triton_here.INTERPRETED and shape in LARGE:
        pytest.skip("an interpreter takes minutes for it")
    check_against_truth(impl, make(impl, *shape))


@implementations()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES[2:4], ids=lambda s: "x".join(map(str, s)))
def test_sixteen_bits(impl, dtype, shape):
    check_against_truth(impl, make(impl, *shape, dtype=dtype))


def seeded(device="cpu", seed=3):
    """The seed that the next call on a device draws, and the generator as it was before."""
    torch.manual_seed(seed)
    drawn = torch.empty((), dtype=torch.int64, device=device).random_()
    torch.manual_seed(seed)
    return drawn


@implementations()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_dropout(impl, dtype, shape):
    """Everyone drops the elements that the reference says, in forward and backward."""
    case = make(impl, *shape, dtype=dtype)
    keep = reference.keep_mask(seeded(case[0].device), shape[0], shape[1], 0.3).double() / 0.7
    check_against_truth(impl, case, keep=keep, dropout=0.3)


@implementations("cpp")
@pytest.mark.parametrize("accumulate", [False, True])
def test_the_cpus_dropout_in_bfloat16(impl, accumulate):
    """To the bit, with rows for several threads that are no whole vectors."""
    generator = torch.Generator().manual_seed(0)
    seed, dropout = torch.tensor(-(2**40) + 5), 0.3
    x, before = (torch.randn(900, 97, generator=generator).bfloat16() for _ in range(2))
    kept = x.double() * reference.keep_mask(seed, *x.shape, dropout)
    # Once rounded to float32, as is 1 / (1 - dropout), and once to bfloat16.
    scaled = kept * torch.tensor(1 / (1 - dropout)).double()
    expected = (scaled + before.double() if accumulate else scaled).float().bfloat16()
    found = before.clone()
    torch.ops.fangyan.lora_dropout_(found, x, seed, dropout, accumulate)
    assert torch.equal(found, expected)


@implementations("cpp")
@pytest.mark.parametrize("given", ["whole", "transposed", "frozen input"])
def test_several_projections_with_dropout_in_bfloat16(impl, given):
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


def test_the_mask_drops_its_share_and_no_pattern():
    share = 0.1
    masks = [reference.keep_mask(torch.tensor(seed), 2000, 500, share).double() for seed in (1, 2, -5, 2**40)]
    for mask in masks:
        assert mask.mean() == pytest.approx(1 - share, abs=2e-3)
        assert mask.mean(0).std() == pytest.approx((share * (1 - share) / 2000) ** 0.5, rel=0.15)
        assert mask.mean(1).std() == pytest.approx((share * (1 - share) / 500) ** 0.5, rel=0.15)
        centred = mask - mask.mean()
        for one, other in ((centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1])):
            assert abs((one * other).mean() / centred.var()) < 5e-3
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert abs(((one - one.mean()) * (other - other.mean())).mean() / one.var()) < 5e-3


@implementations(*FUSED)
def test_a_checkpointed_forward_drops_the_same(impl):
    from torch.utils.checkpoint import checkpoint

    case = make(impl, *SHAPES[2])
    seeded()
    expected = with_gradients(ours, case, impl=impl, dropout=0.5)
    seeded()
    again = with_gradients(
        lambda *values: checkpoint(lambda *v: ours(*v, impl=impl, dropout=0.5), *values, use_reentrant=False),
        case,
    )
    for one, other in zip(expected, again, strict=True):
        assert torch.equal(one, other)


@implementations(*FUSED)
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("tokens", [3, 200])
def test_four_bits(impl, quant_type, nested, dtype, dropout, tokens):
    """The truth is bitsandbytes' own dequantization."""
    bnb = pytest.importorskip("bitsandbytes")
    case = make(impl, tokens, 64, 48, 4, dtype=dtype)
    packed = bnb.nn.Params4bit(
        case[1].detach().cpu(), quant_type=quant_type, compress_statistics=nested, blocksize=64
    ).to(case[0].device)
    dense = bnb.functional.dequantize_4bit(packed.data, packed.quant_state)
    keep = None
    if dropout:
        keep = reference.keep_mask(seeded(case[0].device), tokens, 64, dropout).double() / (1 - dropout)
    seeded()
    found = with_gradients(ours, [case[0], packed, *case[2:]], impl=impl, dropout=dropout)
    exact = [t.detach().double().requires_grad_(n != 1) for n, t in enumerate([case[0], dense, *case[2:]])]
    truth = with_gradients(plain, exact, keep=keep)
    same_dtype = with_gradients(plain, [case[0], dense, *case[2:]], keep=keep)
    for name, *values in zip(("output", "input", "A", "B", "bias"), found, same_dtype, truth, strict=True):
        assert_within_error_budget(*values, f"{impl} {name}", dtype)


@implementations("reference", *FUSED)
@pytest.mark.parametrize("inner", [32, 96, 100])
def test_rows_that_end_within_a_block(impl, inner):
    """By the code book itself: with AVX-512, bitsandbytes is wrong where such rows are a multiple of 32."""
    bnb = pytest.importorskip("bitsandbytes")
    case = make(impl, 20, inner, 48, 4)
    packed = bnb.nn.Params4bit(case[1].detach().cpu(), quant_type="nf4", compress_statistics=False)
    state = packed.to("cpu").quant_state
    bits = packed.data.flatten().int()
    scales = state.absmax.repeat_interleave(state.blocksize)[: 48 * inner]
    dense = (state.code[torch.stack([bits >> 4, bits & 15], 1).flatten()] * scales).view(48, inner)
    found, expected = (
        ours(case[0], weight.to(case[0].device), *case[2:], impl=impl) for weight in (packed, dense)
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@implementations(*FUSED)
@pytest.mark.parametrize("tokens", [5, 300])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("ranks", [(4, 2, 8), (100, 120, 60)], ids=str)
def test_several_projections_of_one_input(impl, tokens, dropout, ranks):
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


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_peft_is_the_oracle(dropout):
    """Outputs and gradients of PEFT's own layer, its dropout replaced by the mask that ours draws."""
    if triton_here.INTERPRETED:
        pytest.skip("the interpreter runs Triton's kernels alone")
    import peft

    input, weight, a, b, bias = make("cpu", 90, 32, 24, 4)
    base = torch.nn.Linear(32, 24)
    base.weight.data, base.bias.data = weight, bias.detach()
    config = peft.LoraConfig(r=4, lora_alpha=8, use_rslora=True)
    layer = peft.tuners.lora.Linear(base, "default", config=config, r=4, lora_alpha=8)
    layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = a.detach(), b.detach()
    keep = reference.keep_mask(seeded(), 90, 32, dropout) / (1 - dropout)
    layer.lora_dropout["default"] = _Mask(keep)
    expected = layer(input)
    seeded()
    found = lora_linear(input, weight, a, b, bias=bias, scaling=8 / 4**0.5, dropout=dropout)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)  # outputs are up to 60
    theirs = (input, layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), (input, a, b)),
        torch.autograd.grad(expected.square().sum(), theirs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


class _Mask(torch.nn.Module):
    def __init__(self, keep):
        super().__init__()
        self.keep = keep

    def forward(self, input):
        return input * self.keep


@implementations()
def test_no_tokens_at_all(impl):
    case = make(impl, 0, 8, 6, 2)
    output, *gradients = with_gradients(ours, case, impl=impl)
    assert output.shape == (0, 6)
    assert [gradient.shape for gradient in gradients] == [t.shape for n, t in enumerate(case) if n != 1]
    assert not any(gradient.any() for gradient in gradients)


@implementations()
def test_strides_and_leading_dimensions(impl):
    input, weight, a, b, bias = make(impl, 60, 32, 24, 4)
    wide = torch.stack([input.detach()] * 2, dim=-1)[..., 0].requires_grad_()
    assert not wide.is_contiguous()
    case = [wide, weight.T.contiguous().T, a.detach().T.contiguous().T.requires_grad_(), b, bias]
    check_against_truth(impl, case)
    shaped = lora_linear(wide.view(3, 20, 32), *case[1:4], impl=impl)
    flat = lora_linear(input, weight, a, b, impl=impl)
    torch.testing.assert_close(shaped.view(60, 24), flat, rtol=1e-5, atol=1e-5)


@implementations(*FUSED)
@pytest.mark.parametrize("wanted", [(0,), (2,), (3,), (4,), (0, 2), (2, 3)])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_only_what_is_wanted(impl, wanted, dropout):
    case = [tensor.detach() for tensor in make(impl, *SHAPES[2])]
    everything = [tensor.detach().requires_grad_(n != 1) for n, tensor in enumerate(case)]
    seeded()
    expected = with_gradients(ours, everything, impl=impl, dropout=dropout)
    some = [tensor.detach().requires_grad_(n in wanted) for n, tensor in enumerate(case)]
    seeded()
    found = with_gradients(ours, some, impl=impl, dropout=dropout)
    positions = [0, *[{0: 1, 2: 2, 3: 3, 4: 4}[n] for n in wanted]]
    for value, position in zip(found, positions, strict=True):
        assert torch.equal(value, expected[position])


@implementations(*FUSED)
def test_results_owe_nothing_to_what_memory_held(impl, monkeypatch):
    case = make(impl, 130, 63, 48, 3)
    seeded()
    expected = with_gradients(ours, case, impl=impl, dropout=0.5)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)  # new buffers are then full of NaN
    try:
        seeded()
        found = with_gradients(ours, case, impl=impl, dropout=0.5)
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@implementations(*FUSED)
def test_it_keeps_its_input_and_nothing_as_large(impl):
    """What the backward needs is the input and the parameters themselves, and T x R numbers at most."""
    case = make(impl, 64, 16, 24, 2)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ours(*case, impl=impl, dropout=0.5)
    own = {tensor.data_ptr() for tensor in case}
    others = [tensor.shape for tensor in saved if tensor.data_ptr() not in own]
    assert set(others) <= {(), (0,), (64, 2)}


def test_a_gpu_keeps_low_where_asked():
    """Without a GPU: what the operator says of CUDA tensors that are not there."""
    from torch._subclasses import FakeTensorMode

    if triton_here.INTERPRETED:
        pytest.skip("the interpreter runs Triton's kernels alone")
    with FakeTensorMode(), torch.no_grad():
        x, w, a, b = (torch.empty(size, device="cuda") for size in ((9, 4), (6, 4), (2, 4), (6, 2)))
        for keep_low, size in ((True, (9, 2)), (False, (0,))):
            outputs, low = torch.ops.fangyan.lora_linear(
                x, [w], [], [a], [b], [1.0], 0.0, None, [], [], "", keep_low
            )
            assert (outputs[0].shape, low.shape, low.device.type) == ((9, 6), size, "cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="it captures a CUDA graph")
def test_triton_graphs_draw_a_new_mask_at_each_replay():
    case = [tensor.detach() for tensor in make("triton", 64, 32, 16, 4)]
    with torch.no_grad():
        ours(*case, impl="triton", dropout=0.5)  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = ours(*case, impl="triton", dropout=0.5)
    replays = []
    for _ in range(2):
        graph.replay()
        replays.append(output.clone())
    assert not torch.equal(*replays)


@implementations(*FUSED)
def test_opcheck_and_fullgraph(impl):
    case = make(impl, 40, 16, 24, 2)
    seed = torch.tensor(7)
    arguments = ([case[1]], [case[4]], [case[2]], [case[3]], [SCALING], 0.5, seed, [], [], "", False)
    if not triton_here.INTERPRETED:
        torch.library.opcheck(torch.ops.fangyan.lora_linear.default, (case[0], *arguments))
        compiled = torch.compile(
            lambda *values: ours(*values, impl=impl), fullgraph=True, backend="aot_eager"
        )
        for tokens in (40, 41, 300):
            fresh = make(impl, tokens, 16, 24, 2)
            for one, other in zip(
                with_gradients(compiled, fresh), with_gradients(ours, fresh, impl=impl), strict=True
            ):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@implementations(*FUSED)
def test_a_second_derivative_is_refused(impl):
    case = make(impl, 10, 4, 4, 2)
    output = ours(*case, impl=impl)
    with pytest.raises(RuntimeError, match="gradient of a gradient"):
        torch.autograd.grad(output.sum(), case[0], create_graph=True)


def test_gradcheck_of_the_reference():
    case = [
        tensor.detach().double().requires_grad_(n != 1) for n, tensor in enumerate(make("cpu", 3, 4, 5, 2))
    ]
    assert torch.autograd.gradcheck(lambda *v: ours(*v, impl="reference"), case)


def test_autocast_casts_as_linear_does():
    if triton_here.INTERPRETED:
        pytest.skip("the interpreter runs Triton's kernels alone")
    case = make("cpu", 50, 16, 24, 2)
    with torch.autocast("cpu", torch.bfloat16):
        output = ours(*case)
        expected = plain(*case)
    assert output.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected, rtol=0.05, atol=0.1)


@given(
    tokens=st.integers(0, 120),
    inner=st.integers(1, 70),
    outer=st.integers(1, 70),
    rank=st.integers(1, 20),
    dropout=st.sampled_from([0.0, 0.1, 0.9]),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape(tokens, inner, outer, rank, dropout):
    if triton_here.INTERPRETED:
        pytest.skip("the interpreter runs Triton's kernels alone")
    case = make("cpu", tokens, inner, outer, rank)
    seeded()
    expected = with_gradients(ours, case, impl="reference", dropout=dropout)
    seeded()
    found = with_gradients(ours, case, impl="cpp", dropout=dropout)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weight": torch.randn(6, 9)}, r"weight is of shape \(6, 9\), expected \(N, 8\)"),
        ({"weight": torch.randn(6, 8).double()}, "weight is torch.float64, expected input's torch.float32"),
        ({"weight": torch.randn(6, 8, requires_grad=True)}, "weight requires a gradient"),
        ({"lora_A": torch.randn(2, 7)}, r"lora_A is .* expected \(R, 8\) with R from 1 to 256"),
        ({"lora_A": torch.randn(300, 8)}, "R from 1 to 256"),
        ({"lora_B": torch.randn(6, 3)}, r"lora_B is .* expected shape \(6, 2\)"),
        ({"bias": torch.randn(5)}, r"bias is .* of shape \(6,\)"),
        ({"dropout": 1.0}, r"dropout is 1.0, expected a number in \[0, 1\)"),
        ({"impl": "cuda"}, "impl is 'cuda', expected one of auto, reference, cpp, triton"),
        ({"impl": "triton"}, "impl='triton' takes float32, bfloat16 and float16 on cuda"),
        ({"input": torch.zeros(3, 8, dtype=torch.int64)}, "input is torch.int64"),
        ({"weight": [torch.randn(6, 8)] * 2}, "lora_A has 1 entries"),
    ],
)
def test_bad_arguments_are_named(change, sentence):
    good = {
        "input": torch.randn(3, 8),
        "weight": torch.randn(6, 8),
        "lora_A": torch.randn(2, 8),
        "lora_B": torch.randn(6, 2),
    }
    if isinstance(change.get("weight"), list):
        good |= {"lora_A": [good["lora_A"]], "lora_B": [good["lora_B"]]}
    with pytest.raises(ValueError, match=sentence):
        lora_linear(**(good | change))
