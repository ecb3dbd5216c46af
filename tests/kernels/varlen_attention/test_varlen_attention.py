"""Every implementation against a float64 truth, within an error budget; PyTorch's attention as oracle."""

import itertools

import pytest
import torch
import torch.nn.functional as F
import triton_here
from fangyan_kernels import varlen_attention
from fangyan_kernels.testing.error_budget import assert_within_error_budget
from fangyan_kernels.varlen_attention import reference
from hypothesis import given, settings
from hypothesis import strategies as st

if triton_here.INTERPRETED:
    pytest.skip("the interpreter runs Triton's kernels alone", allow_module_level=True)

IMPLEMENTATIONS = ["reference", "cpp"]
DTYPES = [torch.float32, torch.bfloat16]
CAUSAL, BOTH = (-1, 0), (-1, -1)
LENGTHS = {
    "one": (1,),
    "odd": (1, 2, 3, 63, 200),
    "with an empty one": (5, 0, 7),
}


def make(lengths, heads=4, key_heads=2, size=16, dtype=torch.float32, seed=0):
    """query, key, value and offsets."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    sizes = ((tokens, heads, size), (tokens, key_heads, size), (tokens, key_heads, size))
    case = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in sizes
    ]
    offsets = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return [*case, offsets]


def with_gradients(function, case, **options):
    output = function(*case, **options)
    upstream = torch.linspace(-1.0, 1.5, output.numel(), dtype=torch.float64).sin().view(output.shape)
    return output, *torch.autograd.grad(output, case[:3], upstream.to(output.dtype))


def check_against_truth(impl, case, **options):
    """At most twice the error of plain PyTorch in the same dtype, and one rounding of the largest value."""
    wide = [*(tensor.detach().double().requires_grad_() for tensor in case[:3]), case[3]]
    truth = with_gradients(varlen_attention, wide, impl="reference", **options)
    plain = with_gradients(varlen_attention, case, impl="reference", **options)
    found = with_gradients(varlen_attention, case, impl=impl, **options)
    for name, value, other, exact in zip(
        ("output", "query", "key", "value"), found, plain, truth, strict=True
    ):
        assert value.dtype == case[0].dtype
        assert_within_error_budget(value, other, exact, f"{impl} {name}")


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [BOTH, CAUSAL, (3, 2)], ids=str)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_varlen_attention_values_and_gradients(impl, dtype, window, lengths):
    check_against_truth(impl, make(lengths, dtype=dtype), window=window)


def test_varlen_attention_of_many_sequences():
    check_against_truth("cpp", make([1 + i % 9 for i in range(200)], dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("heads", "key_heads", "size"), [(1, 1, 1), (3, 3, 17), (4, 1, 64), (6, 2, 80), (2, 1, 256)], ids=str
)
def test_varlen_attention_of_every_head_size(dtype, heads, key_heads, size):
    case = make((50, 7, 49), heads, key_heads, size, dtype)
    check_against_truth("cpp", case, window=CAUSAL, scale=0.3)


@pytest.mark.parametrize("window", [BOTH, CAUSAL], ids=str)
def test_varlen_attention_equals_masked_attention(window):
    query, key, value, offsets = make(LENGTHS["odd"])
    ids = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    mask = ids[:, None] == ids[None, :]
    expected = F.scaled_dot_product_attention(
        *(tensor.transpose(0, 1)[None] for tensor in (query, key, value)),
        attn_mask=mask.tril() if window == CAUSAL else mask,
        enable_gqa=True,
    )[0].transpose(0, 1)
    found = varlen_attention(query, key, value, offsets, window=window)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@given(
    lengths=st.lists(st.integers(0, 120), min_size=1, max_size=6),
    group=st.integers(1, 3),
    key_heads=st.integers(1, 2),
    size=st.integers(1, 40),
    window=st.tuples(st.integers(-1, 50), st.integers(-1, 50)),
)
@settings(max_examples=40, deadline=None)
def test_varlen_attention_of_any_shape(lengths, group, key_heads, size, window):
    case = make(lengths, group * key_heads, key_heads, size)
    found, expected = (
        with_gradients(varlen_attention, case, impl=impl, window=window) for impl in ("cpp", "reference")
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_varlen_attention_of_views(dtype):
    """Heads side by side in one projection of queries, keys and values; a stride of 2 within a head."""
    query, key, value, offsets = make((30, 2, 9), 4, 4, 16, dtype)
    joint = torch.cat([query, key, value], dim=1).detach()
    views = [part.requires_grad_() for part in joint.split(4, dim=1)]
    every_other = torch.stack([query.detach()] * 2, dim=-1)[..., 0].requires_grad_()
    assert not views[1].is_contiguous()
    assert every_other.stride(-1) == 2
    expected = with_gradients(varlen_attention, [query, key, value, offsets])
    for case in ([*views, offsets], [every_other, key, value, offsets]):
        for one, other in zip(with_gradients(varlen_attention, case), expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_varlen_attention_on_any_number_of_threads_with_nan_filled_buffers(dtype):
    case = make((100, 3, 60, 1, 33), dtype=dtype)
    expected = with_gradients(varlen_attention, case)
    threads = torch.get_num_threads()
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            for one, other in zip(with_gradients(varlen_attention, case), expected, strict=True):
                assert torch.equal(one, other)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)


def test_varlen_attention_with_nan_in_another_sequence():
    """Not even its NaN; and what a token does not see has no gradient from it."""
    case = make((20, 31, 5))
    expected = varlen_attention(*case, window=CAUSAL)
    poisoned = [case[0], *(tensor.detach().clone() for tensor in case[1:3]), case[3]]
    for tensor in poisoned[1:3]:
        tensor[20:51] = float("nan")
    found = varlen_attention(*poisoned, window=CAUSAL)
    assert torch.equal(found[:20], expected[:20])
    assert torch.equal(found[51:], expected[51:])
    assert found[20:51].isnan().all()
    gradient = torch.autograd.grad(expected[10].sum(), case[2])[0]
    assert gradient[:11].any()
    assert not gradient[11:].any()


def test_varlen_attention_saves_its_inputs_alone():
    case = make((40, 20))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        varlen_attention(*case)
    assert {tensor.data_ptr() for tensor in saved} == {tensor.data_ptr() for tensor in case}


def test_varlen_attention_passes_opcheck_and_compiles():
    case = make((7, 20, 3))
    torch.library.opcheck(torch.ops.fangyan.varlen_attention.default, (*case, -1, 0, 0.25))
    compiled = torch.compile(varlen_attention, fullgraph=True, backend="aot_eager")
    for lengths in ((7, 20, 3), (5, 5), (200,)):
        fresh = make(lengths)
        for one, other in zip(
            with_gradients(compiled, fresh), with_gradients(varlen_attention, fresh), strict=True
        ):
            torch.testing.assert_close(one, other)


def test_varlen_attention_reference_passes_gradcheck():
    query, key, value, offsets = make((2, 1, 3), 2, 1, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *v: reference.varlen_attention(*v, offsets, (2, 1), 0.5), (query, key, value)
    )


def test_varlen_attention_refuses_a_second_derivative():
    case = make((5,))
    with pytest.raises(RuntimeError, match="gradient of a gradient"):
        torch.autograd.grad(varlen_attention(*case).sum(), case[0], create_graph=True)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"query": torch.zeros(4, 8)}, r"query is .* expected floating point of shape \(T, H, D\)"),
        ({"key": torch.zeros(4, 2, 7)}, r"key is .* expected shape \(4, G, 8\)"),
        ({"key": torch.zeros(4, 3, 8)}, "key has 3 heads, expected as many as key, a divisor of 4"),
        ({"value": torch.zeros(4, 4, 8)}, "value has 4 heads, expected as many as key"),
        ({"value": torch.zeros(4, 2, 8).double()}, "value is torch.float64 on cpu, expected query's"),
        ({"offsets": torch.tensor([0, 4])}, "offsets is torch.int64"),
        ({"window": (-2, 0)}, r"window is \(-2, 0\), expected two counts of tokens"),
        ({"impl": "triton"}, "impl is 'triton', expected one of auto, reference, cpp"),
        ({"query": torch.zeros(4, 4, 300), "key": torch.zeros(4, 2, 300), "value": torch.zeros(4, 2, 300),
          "impl": "cpp"}, "impl='cpp' takes float32 and bfloat16 on cpu and heads of up to 256"),
    ],
)  # fmt: skip
def test_varlen_attention_refuses_bad_arguments(change, sentence):
    good = {
        "query": torch.zeros(4, 4, 8),
        "key": torch.zeros(4, 2, 8),
        "value": torch.zeros(4, 2, 8),
        "offsets": torch.tensor([0, 4], dtype=torch.int32),
    }
    with pytest.raises(ValueError, match=sentence):
        varlen_attention(**(good | change))


@pytest.mark.parametrize(
    ("offsets", "sentence"),
    [
        ([0, 3], "run from 0 to 3, expected from 0 to the 4 tokens"),
        ([0, 3, 2, 4], r"offsets\[2\] is 2, expected no less"),
    ],
)
def test_varlen_attention_refuses_bad_offsets(offsets, sentence):
    states = torch.zeros(4, 2, 8)
    with pytest.raises(RuntimeError, match=sentence):
        varlen_attention(states, states, states, torch.tensor(offsets, dtype=torch.int32))
