"""4-bit weights; bitsandbytes and PEFT as oracles."""

import pytest
import torch
import triton_here
from fangyan_kernels import lora_linear
from fangyan_kernels.lora_linear import reference
from fangyan_kernels.testing.error_budget import assert_within_error_budget
from lora_cases import FUSED, implementations, make, ours, plain, seeded, with_gradients


@implementations(*FUSED)
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("tokens", [3, 200])
def test_lora_linear_of_four_bit_weights(impl, quant_type, nested, dtype, dropout, tokens):
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
def test_lora_linear_of_four_bit_rows_that_end_within_a_block(impl, inner):
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


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_lora_linear_equals_peft(dropout):
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
