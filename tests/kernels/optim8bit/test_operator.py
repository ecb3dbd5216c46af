"""The operators of the 8-bit optimizers: codes, states, gradient scale, and refusals."""

import math

import pytest
import torch
import triton_here
from bitsandbytes.functional import create_dynamic_map
from fangyan_kernels import AdamW8bit
from fangyan_kernels.optim8bit import reference
from optim8bit_cases import KEYS, gradients, run

if triton_here.INTERPRETED:
    pytest.skip("the interpreter runs Triton's kernels alone", allow_module_level=True)


SIGNED, UNSIGNED = create_dynamic_map(signed=True), create_dynamic_map(signed=False)


def test_adamw8bit_maps_are_bitsandbytes():
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
def test_optimizer_step_encodes_as_the_reference(k):
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
def test_optimizer_step_decodes_every_code(k):
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


def test_adamw8bit_state_size():
    _, optimizer = run(AdamW8bit, torch.zeros(1_000_000), gradients(1_000_000, 1))
    (state,) = optimizer.state.values()
    assert sum(state[key].nbytes for key in KEYS) < 2.1 * 1_000_000


@pytest.mark.parametrize("algorithm", ["adam", "lion", "ademamix"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_optimizer_step_with_a_gradient_scale(algorithm, dtype):
    """With 32-bit states, as a step of bfloat16 gradients with float32 weights has them."""
    # At -3 the average of Lion is 0, and the sign of its rounding error decides on the step.
    gradient = torch.randn(700).clamp(-2.5, 2.5).to(dtype)
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


def test_optimizer_step_passes_opcheck():
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
        ({"state2": torch.zeros(299, dtype=torch.uint8)}, "expected state2 contiguous, of 300 elements"),
        ({"state2": torch.zeros(300)}, "expected state2 of state1's type"),
        ({"absmax1": None}, "expected scales and a map with the codes of state1"),
        ({"parameter": torch.zeros(300, dtype=torch.float64)}, "expected parameter in float32, bfloat16 or"),
        ({"algorithm": "sgd"}, "is sgd, expected adam, lion or ademamix"),
    ],
)
def test_optimizer_step_refuses_bad_arguments(change, sentence):
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
