"""The fused loss is the cross-entropy of the model's own logits, whatever it does to them behind its head."""

import copy

import pytest
import torch
import transformers
from adapted_models import HEADS
from adapted_models import SMALL as SIZES
from fangyan.adaptation import ADAPTATIONS
from fangyan.data.packing import collate
from fangyan.data.tokenization import IGNORE_INDEX, TokenizedSequence
from fangyan.models.loss_head import LogitTransform, find_logit_transform, install_loss_head
from fangyan.models.packed import PackedModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

MAMBA = {"mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
LAYERS = {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}


def gemma4():
    small = {"global_head_dim": 8, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 60}
    text = transformers.Gemma4TextConfig(
        **SIZES, **HEADS, **LAYERS, **small, num_kv_shared_layers=0, final_logit_softcapping=30.0
    )
    return transformers.Gemma4Config(text_config=text, vision_config=None, audio_config=None)


# What each does to the outputs of its head: a scale and a cap.
CAUSAL = {
    "Cohere": (lambda: transformers.CohereConfig(**SIZES), 0.0625, None),
    "Cohere 2": (lambda: transformers.Cohere2Config(**SIZES, **HEADS), 0.0625, None),
    "Granite": (lambda: transformers.GraniteConfig(**SIZES, logits_scaling=8.0), 0.125, None),
    "Falcon-H1": (
        lambda: transformers.FalconH1Config(
            **SIZES, **HEADS, **MAMBA, mamba_d_ssm=32, mamba_n_heads=4, lm_head_multiplier=0.3
        ),
        0.3,
        None,
    ),
    "RecurrentGemma": (
        lambda: transformers.RecurrentGemmaConfig(
            **SIZES | {"num_hidden_layers": 3}, num_key_value_heads=1, lru_width=32, attention_window_size=24
        ),
        1.0,
        30.0,
    ),
    "Gemma 2": (lambda: transformers.Gemma2Config(**SIZES, **HEADS, final_logit_softcapping=2.0), 1.0, 2.0),
    "Gemma 3": (lambda: transformers.Gemma3TextConfig(**SIZES, **HEADS), 1.0, None),
    "Gemma 4": (gemma4, 1.0, 30.0),
    "GPT-2": (lambda: transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4), 1.0, None),
    "Qwen 3": (lambda: transformers.Qwen3Config(**SIZES, **HEADS), 1.0, None),
}
ENCODERS = {
    "BERT": transformers.BertConfig,
    "XLM-R": transformers.XLMRobertaConfig,
    "DeBERTa": transformers.DebertaV2Config,
}


def randomize(model):
    """Weights that move the logits as far as trained ones do."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def make_sequences(classes):
    generator = torch.Generator().manual_seed(1)
    sequences = []
    for i, length in enumerate((9, 3, 6)):
        ids = torch.randint(5, 60, (length,), generator=generator).tolist()
        labels = torch.randint(classes, (length,), generator=generator).tolist()
        sequences.append(TokenizedSequence(ids, [*labels[:-1], IGNORE_INDEX], i))
    return sequences


def own_loss(model, batch, label_smoothing):
    mask = (batch.sequence_ids > 0).long()
    logits = model(input_ids=batch.input_ids, attention_mask=mask).logits
    return nn.functional.cross_entropy(
        logits.flatten(0, 1).float(),
        batch.labels.flatten(),
        reduction="sum",
        label_smoothing=label_smoothing,
    )


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def check_loss(packed, plain, classes):
    """Compare the loss and the gradient of every weight with those of the model before."""
    batch = collate(make_sequences(classes), 0, packed.row_width)
    for label_smoothing in (0.0, 0.1):
        found = packed.loss(batch, 4.0, label_smoothing)
        expected = own_loss(plain, batch, label_smoothing) / 4
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        packed.zero_grad()
        plain.zero_grad()
        found.backward()
        expected.backward()
        theirs = gradients(plain)
        assert gradients(packed.model).keys() == theirs.keys()
        largest = max(float(gradient.abs().max()) for gradient in theirs.values())
        for name, gradient in gradients(packed.model).items():
            torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-6 * largest, msg=name)


@pytest.mark.parametrize("name", CAUSAL)
def test_loss_is_cross_entropy_of_the_models_own_logits(name):
    config, scale, softcap = CAUSAL[name]
    plain = randomize(AutoModelForCausalLM.from_config(config(), dtype=torch.float32))
    packed = PackedModel(copy.deepcopy(plain), "padded")
    assert packed.messages == []
    transform = packed.logit_transform
    assert transform.scale == pytest.approx(scale, rel=1e-6)
    assert transform.softcap == softcap
    check_loss(packed, plain, 60)


@pytest.mark.parametrize("name", ENCODERS)
def test_loss_of_a_tagger_is_cross_entropy_of_its_own_logits(name):
    config = ENCODERS[name](num_labels=2, **SIZES)
    plain = randomize(AutoModelForTokenClassification.from_config(config, dtype=torch.float32))
    packed = PackedModel(copy.deepcopy(plain), "padded")
    assert packed.messages == []
    assert packed.logit_transform == LogitTransform()
    check_loss(packed, plain, 2)


def adapted(method, **settings):
    """A Cohere with an adapter."""
    model = randomize(AutoModelForCausalLM.from_config(CAUSAL["Cohere"][0](), dtype=torch.float32))
    options = {"peft_task_type": "CAUSAL_LM", "new_head": None, "total_steps": 1, "kernels": "auto"}
    adaptation = ADAPTATIONS.members[method](**settings)
    return PackedModel(adaptation.apply(model, activation_dtype=torch.float32, **options), "padded")


def test_loss_of_prompt_tuning_is_cross_entropy_of_the_logits():
    """Rows are longer than their labels by the prompt."""
    packed = adapted("prompt_tuning", virtual_tokens=4)
    batch = collate(make_sequences(60), 0, packed.row_width)
    expected = nn.functional.cross_entropy(
        packed.logits(batch).flatten(0, 1), batch.labels.flatten(), reduction="sum"
    )
    found = packed.loss(batch)
    torch.testing.assert_close(found, expected)
    (prompt,) = (parameter for parameter in packed.parameters() if parameter.requires_grad)
    torch.testing.assert_close(*(torch.autograd.grad(loss, prompt)[0] for loss in (found, expected)))


def test_loss_under_gradient_checkpointing():
    packed = adapted("lora", rank=4).train()
    batch = collate(make_sequences(60), 0, packed.row_width)
    trained = [parameter for parameter in packed.parameters() if parameter.requires_grad]
    expected = torch.autograd.grad(packed.loss(batch), trained)
    packed.use_gradient_checkpointing()
    found = torch.autograd.grad(packed.loss(batch), trained)
    assert any(gradient.any() for gradient in found)
    torch.testing.assert_close(found, expected)


class Odd(transformers.Qwen3ForCausalLM):
    """Does something to its logits that no published model does."""

    odd = staticmethod(torch.square)

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = self.odd(output.logits)
        return output


def without_the_first_class(logits):
    return logits.index_fill(-1, torch.tensor([0]), -1e4)


ODD = {
    "squared": torch.square,
    "shifted": lambda logits: logits + 1.0,
    "normalized": lambda logits: logits.log_softmax(-1),
    "clipped": lambda logits: logits.clamp(-5.0, 5.0),
    "without a class": without_the_first_class,
    "in 16 bits": lambda logits: (0.3 * logits).bfloat16(),
    "reshaped": lambda logits: logits.unflatten(-1, (6, 10)).flatten(-2),
}


@pytest.mark.parametrize("odd", ODD)
def test_loss_of_an_odd_model_is_plain_and_right(odd, monkeypatch):
    monkeypatch.setattr(Odd, "odd", staticmethod(ODD[odd]))
    config = transformers.Qwen3Config(**SIZES, **HEADS)
    plain = randomize(Odd(config))
    packed = PackedModel(copy.deepcopy(plain), "padded")
    (message,) = packed.messages
    assert message.startswith("Odd transforms its logits")
    assert packed.logit_transform is None
    check_loss(packed, plain, 60)


@pytest.mark.parametrize("scale", [0.0625, 1.0, 1 / 3, 7.0, -2.0])
@pytest.mark.parametrize("softcap", [None, 1.5, 50.0])
def test_find_logit_transform_of_a_scale_and_a_cap(scale, softcap, monkeypatch):
    expected = LogitTransform(scale, softcap)
    monkeypatch.setattr(Odd, "odd", staticmethod(expected))
    model = Odd(transformers.Qwen3Config(**SIZES, **HEADS))
    found = find_logit_transform(model, install_loss_head(model, 60, "auto"))
    assert found.scale == pytest.approx(scale, rel=1e-6)
    assert found.softcap == (softcap and pytest.approx(softcap, rel=1e-6))


def test_packed_model_of_a_model_that_was_packed_before():
    model = randomize(AutoModelForCausalLM.from_config(CAUSAL["Cohere"][0](), dtype=torch.float32))
    plain = copy.deepcopy(model)
    PackedModel(model, "varlen")
    check_loss(PackedModel(model, "padded"), plain, 60)


def test_find_logit_transform_leaves_no_trace():
    config = transformers.BertConfig(num_labels=2, **SIZES)
    model = AutoModelForTokenClassification.from_config(config).train()
    model.bert.encoder.eval()
    head = install_loss_head(model, 2, "auto")
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    find_logit_transform(model, head)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert not head._forward_hooks
    assert head(torch.zeros(1, 3, 32)).shape == (1, 3, 2)
