"""Options, dtypes and sizes whose kernels differ; with the plugin ``compiled_here`` each has to compile."""

import pytest
import torch
import triton_here
from fangyan_kernels import linear_cross_entropy_with_statistics, lora_linear

TOKENS, HIDDEN = 40, 64
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
ALONE = {
    "bias": {},
    "weight": {},
    "token_weight": {},
    "label_smoothing": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 0.01},
    "logit_scale": {"logit_scale": 0.25},
    "softcap": {"softcap": 15.0},
    "divisor": {"divisor": 7.0},
    "max_valid": {"max_valid": 20},
    "predictions": {"predictions": True},
    "frozen input": {},
    "frozen weight": {},
    "no gradient": {},
}
TOGETHER = {"label_smoothing": 0.1, "z_loss": 0.01, "logit_scale": 0.25, "softcap": 15.0, "predictions": True}


@pytest.fixture(autouse=True)
def compiling(monkeypatch):
    with triton_here.on_the_cpu(monkeypatch):
        yield


def loss_of(classes, dtype, impl, names=(), **options):
    input, weight, bias = (
        torch.randn(size).to(dtype) for size in ((TOKENS, HIDDEN), (classes, HIDDEN), classes)
    )
    for name, leaf in (("input", input), ("weight", weight), ("bias", bias)):
        leaf.requires_grad_(f"frozen {name}" not in names and "no gradient" not in names)
    if "bias" in names:
        options["linear_bias"] = bias
    if "weight" in names:
        options["weight"] = torch.rand(classes)
    if "token_weight" in names:
        options["token_weight"] = torch.rand(TOKENS)
    target = torch.randint(classes, (TOKENS,))
    loss, _ = linear_cross_entropy_with_statistics(input, weight, target, impl=impl, **options)
    if loss.requires_grad:
        loss.backward(torch.full_like(loss, 2.0))


@DTYPES
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("classes", [7, 32, 33, 300, 5000])
def test_reductions_without_options_and_with_all(classes, reduction, dtype):
    for impl in ("triton", "triton_large_vocab"):
        loss_of(classes, dtype, impl, reduction=reduction)
        loss_of(classes, dtype, impl, ("bias", "weight", "token_weight"), reduction=reduction, **TOGETHER)


@DTYPES
@pytest.mark.parametrize("option", ALONE)
@pytest.mark.parametrize("classes", [7, 32, 33, 300, 5000])
def test_options_alone(classes, option, dtype):
    loss_of(classes, dtype, "triton", (option,), **ALONE[option])


@DTYPES
@pytest.mark.parametrize("hidden", [1280, 4096])
@pytest.mark.parametrize("classes", [7, 32])
def test_tags_in_two_passes(classes, hidden, dtype, monkeypatch):
    monkeypatch.setitem(globals(), "HIDDEN", hidden)
    for reduction in ("mean", "sum", "none"):
        loss_of(classes, dtype, "triton", reduction=reduction)
        loss_of(classes, dtype, "triton", ("bias", "weight", "token_weight"), reduction=reduction, **TOGETHER)


def layers(ranks, dtype, tokens, kind, dropout):
    input = torch.randn(tokens, HIDDEN).to(dtype).requires_grad_()
    weights = [torch.randn(48, HIDDEN).to(dtype) for _ in ranks]
    if kind != "plain":
        bnb = pytest.importorskip("bitsandbytes")
        options = {"quant_type": kind.split()[-1], "compress_statistics": "nested" in kind, "blocksize": 64}
        weights = [bnb.nn.Params4bit(weight, **options).to("cpu") for weight in weights]
    a = [torch.randn(rank, HIDDEN).to(dtype).requires_grad_() for rank in ranks]
    b = [torch.randn(48, rank).to(dtype).requires_grad_() for rank in ranks]
    bias = [torch.randn(48).to(dtype).requires_grad_() for _ in ranks]
    outputs = lora_linear(input, weights, a, b, bias=bias, scaling=0.5, dropout=dropout, impl="triton")
    sum(output.sum() for output in outputs).backward()


@DTYPES
@pytest.mark.parametrize("kind", ["plain", "nf4", "nested nf4"])
@pytest.mark.parametrize("ranks", [(1,), (8,), (64,), (256,), (8, 8, 8), (64, 256)], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_layers(dropout, ranks, kind, dtype):
    for tokens in (5, 150):
        layers(ranks, dtype, tokens, kind, dropout)
