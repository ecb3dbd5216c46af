"""LoRA layers by fangyan's op: which of them are one call, and which stay PEFT's."""

import pytest
import torch
from adapted_models import CAUSAL, batch_of, build, randomize_adapters
from fangyan.adaptation.fused_lora import use_fused_lora
from fangyan.models.packed import PackedModel
from fangyan_kernels import lora_linear
from torch import nn

SHARED = {
    "bert": [("query", "key", "value")],
    "electra": [("query", "key", "value")],
    "xlm-roberta": [("query", "key", "value")],
    "llama": [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")],
    "qwen3": [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")],
    "gemma2": [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")],
    "gemma3": [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")],
}


def shared_inputs(packed):
    """The names of the layers of each group, per layer of the model."""
    names = {module: name.rpartition(".")[2] for name, module in packed.named_modules()}
    groups = {}
    for module in packed.modules():
        if (shared := getattr(module, "shared_input", None)) is not None:
            groups.setdefault(shared, []).append(names[module])
    return [tuple(group) for group in groups.values()]


def count_calls(monkeypatch):
    """How many layers each call of the op computes."""
    calls = []

    def counted(x, weight, *args, **kwargs):
        calls.append(len(weight) if isinstance(weight, list) else 1)
        return lora_linear(x, weight, *args, **kwargs)

    monkeypatch.setattr("fangyan.adaptation.fused_lora.lora_linear", counted)
    return calls


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("quantization", [None, "nf4"])
@pytest.mark.parametrize("name", SHARED)
def test_layers_that_share_an_input_are_one_call(name, quantization, checkpointing, monkeypatch):
    """Outputs and gradients are those of one call each."""
    packed, _ = build(name, "lora", rank=4, quantization=quantization)
    assert shared_inputs(packed) == SHARED[name] * 2
    randomize_adapters(packed)
    if checkpointing:
        packed.use_gradient_checkpointing()
    calls, batch, results = count_calls(monkeypatch), batch_of(name), []
    for _ in range(2):
        loss = packed.train().loss(batch)
        results.append((loss.detach(), len(calls)))
        loss.backward()
        results[-1] += ({n: p.grad for n, p in packed.named_parameters() if p.requires_grad},)
        packed.zero_grad()
        for module in packed.modules():
            if (shared := getattr(module, "shared_input", None)) is not None:
                assert shared._pending is None
                module.shared_input = None
        calls.clear()
    # Of each layer of the model: its groups, and what has an input of its own.
    once = 1 if name == "electra" else 0  # its embeddings are projected
    one_call, alone = (4, 7) if name in CAUSAL else (4, 6)
    assert [number for _, number, _ in results] == [once + 2 * one_call, once + 2 * alone]
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-6, atol=1e-6)
    for n, gradient in results[0][2].items():
        error = (gradient - results[1][2][n]).norm() / results[1][2][n].norm()
        assert error < 1e-4, f"{n}: {error}"


@pytest.mark.parametrize("change", ["disabled", "dropout", "bias", "sharded", "target"])
def test_layers_are_called_alone_where_one_call_cannot_compute_them(change, monkeypatch):
    packed, _ = build("qwen3", "lora", **({"targets": ["q_proj", "up_proj"]} if change == "target" else {}))
    randomize_adapters(packed)
    batch = batch_of("qwen3")
    packed.eval()
    key = packed.base.model.layers[0].self_attn.k_proj
    if change == "disabled":
        key._disable_adapters = True
    elif change == "dropout":
        key.train().lora_dropout["default"] = nn.Dropout(1e-9)
    elif change == "bias":
        key.get_base_layer().bias = nn.Parameter(torch.zeros(16), requires_grad=False)
    elif change == "sharded":  # as ZeRO-3 marks its parameters
        key.get_base_layer().weight.ds_id = 0
    calls = count_calls(monkeypatch)
    with torch.no_grad():
        found = packed.loss(batch)
        first_layer = {"disabled": [1, 1], "target": [1, 1]}.get(change, [1, 1, 1])
        assert calls[: len(first_layer) + 1] == [*first_layer, 1]
        for layer in packed.modules():
            layer.__class__ = type(layer).__base__ if hasattr(layer, "shared_input") else type(layer)
        torch.testing.assert_close(found, packed.loss(batch), rtol=1e-4, atol=1e-4)


def test_a_shared_input_draws_one_dropout_mask():
    packed, _ = build("qwen3", "lora", dropout=0.5)
    randomize_adapters(packed)
    batch = batch_of("qwen3")
    losses = []
    for _ in range(2):
        torch.manual_seed(3)
        losses.append(float(packed.train().loss(batch).detach()))
    assert losses[0] == losses[1]
    assert losses[0] != float(packed.eval().loss(batch).detach())


def test_use_fused_lora_leaves_special_layers_to_peft():
    """Switched off, merged, or with two adapters at once: PEFT's own forward, the same class of layer."""
    packed, before = build("bert", "lora", rank=2)
    packed.eval()
    batch = batch_of("bert")
    with torch.no_grad():
        for n, parameter in packed.named_parameters():
            if "lora_B" in n:
                parameter.normal_()
        adapted = packed.logits(batch)
        with packed.model.disable_adapter():
            off = packed.logits(batch)
        packed.model.merge_adapter()
        merged = packed.logits(batch)
        packed.model.unmerge_adapter()
        back = packed.logits(batch)
    assert not torch.allclose(adapted, off)
    torch.testing.assert_close(merged, adapted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(back, adapted, rtol=1e-3, atol=1e-3)
    plain = PackedModel(before.eval(), "rows")
    torch.testing.assert_close(off, plain.logits(batch).detach(), rtol=1e-4, atol=1e-4)
    assert use_fused_lora(packed) == 0
