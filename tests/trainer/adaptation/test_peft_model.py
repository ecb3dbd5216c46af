"""Adapters of every method: they learn beside frozen weights, and compute as PEFT does."""

import copy
import warnings

import bitsandbytes as bnb
import pytest
import torch
from fangyan.adaptation import ADAPTATIONS
from fangyan.adaptation.fused_lora import use_fused_lora
from fangyan.adaptation.peft_model import without_peft_warnings
from fangyan.adaptation.quantization import dequantize, quantize
from fangyan.data.packing import collate
from fangyan.data.tokenization import IGNORE_INDEX, TokenizedSequence
from fangyan.errors import UserError
from fangyan.models.packed import PackedModel
from fangyan.models.structure import head_name
from fangyan.training.distributed import start_distributed
from fangyan_kernels import lora_linear
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    BertConfig,
    ElectraConfig,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    Qwen3Config,
    XLMRobertaConfig,
)

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 100,
    "pad_token_id": 0,
}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": 5}
HEADS = {"num_key_value_heads": 2, "head_dim": 8}
ENCODERS = {
    "bert": BertConfig(**STILL, **SMALL),
    "electra": ElectraConfig(embedding_size=16, **STILL, **SMALL),
    "xlm-roberta": XLMRobertaConfig(type_vocab_size=1, **STILL, **SMALL),
}
CAUSAL = {
    "llama": LlamaConfig(num_key_value_heads=2, **SMALL),
    "qwen3": Qwen3Config(tie_word_embeddings=True, **HEADS, **SMALL),
    "gemma2": Gemma2Config(sliding_window=64, final_logit_softcapping=2.0, **HEADS, **SMALL),
    "gemma3": Gemma3TextConfig(sliding_window=64, **HEADS, **SMALL),
}


def build(name, method, layout="rows", kernels="auto", rounded=False, **settings):
    """A packed model with an adapter, its base frozen; and the model before.

    Args:
        name: of the architecture.
        method: of adaptation.
        layout: of batches.
        kernels: implementation.
        rounded: the base is in float32, rounded to what 4 bits hold.
        settings: of the method.
    """
    torch.manual_seed(0)
    causal = name in CAUSAL
    kind = AutoModelForCausalLM if causal else AutoModelForTokenClassification
    model = kind.from_config((CAUSAL | ENCODERS)[name], dtype=torch.float32)
    classes = 60 if causal else 5
    head = None if causal else head_name(model, classes)
    before = copy.deepcopy(model)
    if rounded:
        quantize(model, [head] if head else [], torch.float32)
        dequantize(model)
    adapted = ADAPTATIONS.members[method](**settings).apply(
        model,
        peft_task_type="CAUSAL_LM" if causal else "TOKEN_CLS",
        new_head=head,
        total_steps=40,
        activation_dtype=torch.float32,
        kernels=kernels,
    )
    return PackedModel(adapted, layout, kernels), before


def batch_of(name, layout="rows"):
    generator = torch.Generator().manual_seed(1)
    sequences = []
    for i, length in enumerate((7, 1, 20, 12)):
        ids = torch.randint(1, 60, (length,), generator=generator).tolist()
        labels = [*ids[1:], IGNORE_INDEX] if name in CAUSAL else [i % 5 for i in ids]
        sequences.append(TokenizedSequence(ids, labels, i))
    return collate(sequences, 0, 0 if layout == "padded" else 32)


def train(packed, batch, steps=25, rate=2e-2, method="lora"):
    """Losses of some steps of plain AdamW."""
    start_distributed()
    adaptation = ADAPTATIONS.members[method]()
    trained = [p for p in packed.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, rate)
    losses = []
    for step in range(steps):
        loss = packed.loss(batch, float(batch.num_valid))
        loss.backward()
        adaptation.before_optimizer_step(packed.model, step)
        optimizer.step()
        adaptation.after_optimizer_step(packed.model, step)
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


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


@pytest.mark.parametrize("method", ["dora", "adalora", "ia3", "prefix_tuning", "prompt_tuning"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_apply_other_methods_learn(method, name):
    layout = "padded" if method.endswith("_tuning") else "rows"
    if layout == "padded":
        settings = {"virtual_tokens": 4}
    else:
        settings = {} if method == "ia3" else {"rank": 4, "alpha": 8.0}
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


@pytest.mark.parametrize(
    ("method", "quantization", "sentence"),
    [
        ("prompt_tuning", None, "prompt_tuning cannot compute ElectraForTokenClassification"),
        ("dora", "nf4", "dora on 4-bit weights cannot compute ElectraForTokenClassification"),
    ],
)
def test_apply_refuses_what_peft_cannot_compute(method, quantization, sentence):
    """Embeddings narrower than the layers; a row of 4-bit weights that ends within a block."""
    settings = {"quantization": quantization} if quantization else {}
    with pytest.raises(UserError, match=f"adaptation.name: {sentence}.*, expected lora"):
        build("electra", method, "padded", **settings)


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


def randomize_adapters(packed):
    with torch.no_grad():
        for name, parameter in packed.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)


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
