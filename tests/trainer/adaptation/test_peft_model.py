"""Adapters of every method: they learn beside frozen weights, and compute as PEFT does."""

import copy
import warnings

import bitsandbytes as bnb
import pytest
import torch
from adapted_models import CAUSAL, ENCODERS, batch_of, build, train
from fangyan.adaptation.peft_methods import OSF
from fangyan.adaptation.peft_model import without_peft_warnings
from fangyan.adaptation.quantization import dequantize, quantize
from fangyan.errors import UserError
from fangyan.models.packed import PackedModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config


@pytest.mark.parametrize("name", [*ENCODERS, *CAUSAL])
@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_apply_lora_learns_beside_frozen_weights(name, quantization):
    packed, _ = build(name, "lora", rank=4, quantization=quantization)
    fused = [type(module).__module__ == "fangyan.adaptation.fused_lora" for module in packed.modules()]
    assert sum(fused) >= 12
    frozen = {n: p.detach().clone() for n, p in packed.named_parameters() if not p.requires_grad}
    losses = train(packed.train(), batch_of(name))
    # A random frozen head over 60 words bends little.
    assert losses[-1] < losses[0] / (1.2 if name in ENCODERS else 1.03)
    for n, parameter in packed.named_parameters():
        if n in frozen:
            assert torch.equal(parameter.detach(), frozen[n]), n
    trained = {n for n, p in packed.named_parameters() if p.requires_grad}
    assert all("lora_" in n or "modules_to_save" in n for n in trained)
    assert any("modules_to_save" in n for n in trained) == (name in ENCODERS)


@pytest.mark.parametrize("name", ["bert", "qwen3", "gemma2"])
@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_apply_lora_with_kernels_computes_what_peft_does(name, quantization):
    fused, _ = build(name, "lora", rank=4, quantization=quantization, rslora=True)
    # With AVX-512, bitsandbytes' own layers are wrong for rows of 32.
    rounded = quantization is not None
    plain, _ = build(name, "lora", kernels="reference", rounded=rounded, rank=4, rslora=True)
    assert not [m for m in plain.modules() if type(m).__module__ == "fangyan.adaptation.fused_lora"]
    batch = batch_of(name)
    generator = torch.Generator().manual_seed(2)
    state = {
        n: 0.3 * torch.randn(p.shape, generator=generator)
        for n, p in plain.named_parameters()
        if p.requires_grad
    }
    results = []
    for packed in (fused.train(), plain.train()):
        with torch.no_grad():
            for n, parameter in packed.named_parameters():
                if n in state:
                    parameter.copy_(state[n])
        loss = packed.loss(batch)
        loss.backward()
        gradients = {n: p.grad for n, p in packed.named_parameters() if p.requires_grad}
        results.append((loss.detach(), gradients))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)
    for n, gradient in results[0][1].items():
        # The op's own tests hold each product to its rounding; layers of random weights amplify that.
        error = (gradient - results[1][1][n]).norm() / results[1][1][n].norm()
        assert error < 5e-4, f"{n}: {error}"


@pytest.mark.parametrize("method", ["dora", "adalora", "ia3", "osf", "prefix_tuning", "prompt_tuning"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_apply_other_methods_learn(method, name):
    layout = "padded" if method.endswith("_tuning") else "rows"
    if layout == "padded":
        settings = {"virtual_tokens": 4}
    else:
        settings = {} if method in ("ia3", "osf") else {"rank": 4, "alpha": 8.0}
    packed, _ = build(name, method, layout, **settings)
    losses = train(packed.train(), batch_of(name, layout), steps=40, rate=5e-2, method=method)
    # Prompts alone, before a frozen random model, change little.
    assert losses[-1] < losses[0] / (1.004 if method == "prompt_tuning" else 1.02)
    logits = packed.eval().logits(batch_of(name, layout))
    assert logits.shape[:2] == batch_of(name, layout).input_ids.shape


@pytest.mark.filterwarnings("ignore:Adapter .* have invalid shape")  # PEFT's, of a layer whose ranks all went
@pytest.mark.parametrize("steps", [21, 40])
def test_an_exported_adalora_computes_what_was_trained(steps, tmp_path):
    """In the middle of moving ranks, and at the end: PEFT exports the ranks that are left alone."""
    import peft

    packed, before = build("bert", "adalora", rank=4, alpha=8.0)
    batch = batch_of("bert")
    train(packed.train(), batch, steps, rate=5e-2, method="adalora")
    expected = packed.eval().logits(batch).detach()
    packed.model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert {len(weight) for name, weight in weights.items() if "lora_A" in name} > {6}, (
        "some have fewer ranks"
    )
    with without_peft_warnings():
        loaded = PackedModel(peft.PeftModel.from_pretrained(before, tmp_path).eval(), "rows")
    torch.testing.assert_close(loaded.logits(batch).detach(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_osf_leaves_the_largest_directions_and_is_loaded_by_peft(name, tmp_path):
    """What the largest singular directions of a weight say stays; PEFT loads the others, and the new head."""
    import peft

    packed, before = build(name, "osf", preserved=0.5)
    batch = batch_of(name)
    train(packed.train(), batch, 20, rate=5e-3, method="osf")
    expected = packed.eval().logits(batch).detach()
    with without_peft_warnings():
        packed.model.save_pretrained(tmp_path)
        loaded = PackedModel(peft.PeftModel.from_pretrained(before, tmp_path).eval(), "rows")
    torch.testing.assert_close(loaded.logits(batch).detach(), expected, rtol=1e-4, atol=1e-4)
    plain = dict(build(name, "full")[1].named_modules())
    merged = packed.model.merge_and_unload()
    changed = 0
    for path, module in merged.named_modules():
        if isinstance(module, nn.Linear) and path in plain:
            first, now = plain[path].weight.detach(), module.weight.detach()
            u, s, v = torch.linalg.svd(first, full_matrices=False)
            kept = len(s) // 2
            # Nothing is learned between the largest directions, but for what Adam turns gradients.
            drift = u[:, :kept].T @ (now - first) @ v[:kept].T
            if not torch.equal(first, now) and path != "classifier":
                changed += 1
                assert drift.norm() < 0.1 * (now - first).norm(), path
    assert changed >= 12


def test_osf_with_one_direction_to_learn():
    """DeepSpeed looks at weights as bytes, which a slice of one column with its old stride is not."""
    packed, _ = build("bert", "osf", preserved=0.97)
    trained = {name: p for name, p in packed.named_parameters() if "U_low" in name}
    assert {p.shape[1] for p in trained.values()} == {1}
    assert all(p.view(torch.uint8).shape[1] == 4 for p in trained.values())


def test_osf_without_a_direction_to_keep():
    with pytest.raises(UserError, match=r"adaptation.preserved: 0.02 of 32 singular directions .* 0.032"):
        build("bert", "osf", preserved=0.02)


def test_osf_of_layers_that_peft_leaves_frozen():
    model = AutoModelForCausalLM.from_config(GPT2Config(n_embd=32, n_head=4, n_layer=1, vocab_size=60))
    arguments = {"peft_task_type": "CAUSAL_LM", "total_steps": 1, "activation_dtype": torch.float32}
    with pytest.raises(UserError, match=r"adaptation.name: osf is for linear layers, found Conv1D"):
        OSF().apply(model, new_head=None, kernels="auto", **arguments)


@pytest.mark.parametrize(
    ("name", "method", "quantization", "sentence"),
    [
        ("electra", "prompt_tuning", None, "prompt_tuning"),
        ("electra", "dora", "nf4", "dora on 4-bit weights"),
        ("electra, wide", "dora", "nf4", "dora on 4-bit weights"),
    ],
)
def test_apply_refuses_what_peft_cannot_compute(name, method, quantization, sentence):
    """Embeddings narrower than layers; 4-bit rows that end within a block; a failure with gradients."""
    settings = {"quantization": quantization} if quantization else {}
    with pytest.raises(
        UserError, match=f"adaptation.name: {sentence} cannot compute Electra.*, expected lora"
    ):
        build(name, method, "padded", **settings)


@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_use_gradient_checkpointing_trains_adapters(name):
    """The same gradients, with frozen embeddings, as without it."""
    gradients = []
    for checkpointing in (False, True):
        packed, _ = build(name, "lora", rank=4)
        if checkpointing:
            packed.use_gradient_checkpointing()
        packed.train().loss(batch_of(name)).backward()
        gradients.append({n: p.grad for n, p in packed.named_parameters() if "lora_B" in n})
    assert all(gradient.any() for gradient in gradients[1].values())
    for n, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][n], msg=n)


def test_quantize_by_type_and_dequantize():
    packed, before = build("bert", "lora", quantization="nf4")
    base = packed.base
    layers = [module for module in base.modules() if type(module) is bnb.nn.Linear4bit]
    assert len(layers) == 12
    assert all(layer.weight.dtype == torch.uint8 for layer in layers)
    plain = copy.deepcopy(before)
    quantize(plain, ["classifier"], torch.float32)
    assert type(plain.classifier) is nn.Linear
    dequantize(plain)
    for name, module in before.named_modules():
        if isinstance(module, nn.Linear) and name != "classifier":
            error = (plain.get_submodule(name).weight - module.weight).abs().max()
            assert 0 < error < 0.2 * module.weight.abs().max()
            assert plain.get_submodule(name).bias is module.bias or torch.equal(
                plain.get_submodule(name).bias, module.bias
            )


def test_apply_to_targets():
    packed, _ = build("qwen3", "lora", targets=["q_proj", "v_proj"])
    with_adapter = {
        n.split(".lora_A")[0].rpartition(".")[2] for n, _ in packed.named_parameters() if "lora_A" in n
    }
    assert with_adapter == {"q_proj", "v_proj"}
    with pytest.raises(UserError, match=r"adaptation.targets: .* no linear layer 'query'.* q_proj"):
        build("qwen3", "lora", targets=["query"])


def test_apply_trains_an_adapter_of_pefts_further(tmp_path):
    """Written by plain PEFT, with a rank and targets of its own."""
    import peft

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CAUSAL["llama"], dtype=torch.float32)
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a newer transformers, at PEFT
        theirs = peft.get_peft_model(model, config)
    with torch.no_grad():
        for n, parameter in theirs.named_parameters():
            if "lora_B" in n:
                parameter.normal_()
    theirs.save_pretrained(tmp_path / "theirs")
    batch = batch_of("llama")
    expected = PackedModel(theirs.eval(), "rows").loss(batch).detach()
    packed, _ = build("llama", "lora", adapter_path=str(tmp_path / "theirs"))
    torch.testing.assert_close(packed.eval().loss(batch).detach(), expected, rtol=1e-5, atol=1e-4)
    assert {p.shape for n, p in packed.named_parameters() if "lora_A" in n} == {(3, 32)}
    losses = train(packed.train(), batch)
    assert losses[-1] < losses[0]
    with pytest.raises(UserError, match="holds an adapter of type LORA"):
        build("llama", "ia3", adapter_path=str(tmp_path / "theirs"))
    with pytest.raises(UserError, match=r"adaptation.adapter_path: no adapter .* 'nowhere'"):
        build("llama", "lora", adapter_path="nowhere")
