"""Classifiers of whole texts: packed rows give transformers' own logits, losses and gradients."""

import pytest
import torch
from fangyan.data.packing import collate
from fangyan.data.tokenization import IGNORE_INDEX, TokenizedSequence, whole_text
from fangyan.models.layout import choose_layout
from fangyan.models.loss_head import LossHead
from fangyan.models.pooled import PooledModel, native_pooling
from model_families import BY_NAME, VOCABULARY
from torch import nn
from transformers import AutoModelForSequenceClassification

LENGTHS = (3, 40, 31, 12, 12)
KINDS = ("single_label_classification", "multi_label_classification", "regression")
# What a packed batch is on a CPU.
LAYOUTS = {
    "BERT": "varlen",
    "ELECTRA": "varlen",
    "XLM-RoBERTa": "varlen",
    "DistilBERT": "varlen",
    "ALBERT": "varlen",
    "ModernBERT": "varlen",
    "DeBERTa v3": "padded",
    "MPNet": "padded",
    "ConvBERT": "unpadded",
    "Llama": "varlen",
    "Qwen 3": "varlen",
    "GPT-2": "varlen",
    "Gemma 2": "rows",
}


def build(name, kind="single_label_classification", **fields):
    config = BY_NAME[name].config()
    for key, value in config.to_dict().items():
        if isinstance(value, float) and ("dropout" in key or "pdrop" in key):
            setattr(config, key, 0.0)
    outputs = 1 if kind == "regression" else 3
    for key, value in {"num_labels": outputs, "problem_type": kind, **fields}.items():
        setattr(config, key, value)
    if config.pad_token_id is None:
        config.pad_token_id = 0
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()


def sequences(pooling, kind="single_label_classification", lengths=LENGTHS):
    draw = torch.Generator().manual_seed(1)
    found = []
    for i, length in enumerate(lengths):
        ids = torch.randint(10, VOCABULARY - 10, (length,), generator=draw).tolist()
        alignment = whole_text(length, pooling)
        labels = [IGNORE_INDEX] * length
        labels[alignment.places[0]] = i % 3 if kind == KINDS[0] else 0
        targets = {KINDS[0]: [], KINDS[1]: [0.0, 1.0, float(i % 2)], KINDS[2]: [i / 2]}[kind]
        found.append(TokenizedSequence(ids, labels, i, alignment, targets=targets))
    return found


def plain(model, chosen):
    """Transformers' own logits and summed loss, of one padded batch."""
    pad = model.config.get_text_config().pad_token_id
    width = max(len(s.input_ids) for s in chosen)
    ids = torch.tensor([s.input_ids + [pad] * (width - len(s.input_ids)) for s in chosen])
    mask = torch.tensor([[1] * len(s.input_ids) + [0] * (width - len(s.input_ids)) for s in chosen])
    labels = [s.targets or max(s.labels) for s in chosen]
    outputs = model(input_ids=ids, attention_mask=mask, labels=torch.tensor(labels))
    return outputs.logits, outputs.loss * len(chosen)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_packed_batch_is_transformers_own(name, kind):
    model = build(name, kind)
    pooling = native_pooling(model)
    chosen = sequences(pooling, kind)
    # ConvBERT's convolutions see the padding: each text alone.
    batches = [[s] for s in chosen] if LAYOUTS[name] == "unpadded" else [chosen]
    parts = [plain(model, part) for part in batches]
    logits, loss = torch.cat([part[0] for part in parts]).detach(), sum(part[1] for part in parts)
    expected = gradients(model, loss)
    packed = PooledModel(model, "padded", pooling=pooling).eval()
    messages = choose_layout(packed, True, False, 0.0)
    assert packed.layout == LAYOUTS[name]
    assert bool(messages) == (packed.layout != "varlen")
    for layout in {packed.layout, "unpadded"}:
        packed.use_layout(layout)
        batch = collate(chosen, model.config.get_text_config().pad_token_id, packed.row_width)
        torch.testing.assert_close(packed.logits(batch), logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(packed.head(packed.head_inputs(batch)), logits, rtol=1e-5, atol=1e-5)
        found = packed.loss(batch)
        torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-5)
        for key, gradient in gradients(model, found).items():
            torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", ["BERT", "ELECTRA", "Llama", "ModernBERT"])
def test_mean_of_all_sub_words(name):
    """Against the mean by hand, through the model's own layers behind it."""
    model = build(name)
    chosen = sequences("mean")
    body = model.base_model
    expected = []
    for sequence in chosen:
        hidden = body(input_ids=torch.tensor([sequence.input_ids])).last_hidden_state.mean(1, keepdim=True)
        if name == "BERT":
            expected.append(model.classifier(body.pooler(hidden)))
        elif name == "Llama":
            expected.append(model.score(hidden)[:, 0])
        elif name == "ELECTRA":
            expected.append(model.classifier(hidden))
        else:
            expected.append(model.classifier(model.head(hidden[:, 0])))
    packed = PooledModel(model, "padded", pooling="mean").eval()
    choose_layout(packed, True, False, 0.0)
    batch = collate(chosen, 0, packed.row_width)
    assert packed.layout == "varlen"
    torch.testing.assert_close(packed.logits(batch), torch.cat(expected), rtol=1e-5, atol=1e-5)


def test_modernbert_keeps_its_own_mean():
    """Its configuration says so, and plain transformers reads it."""
    model = build("ModernBERT", classifier_pooling="mean")
    assert native_pooling(model) == "mean"
    chosen = sequences("mean")
    logits, loss = plain(model, chosen)
    packed = PooledModel(model, "padded", pooling="mean").eval()
    choose_layout(packed, True, False, 0.0)
    batch = collate(chosen, 0, packed.row_width)
    torch.testing.assert_close(packed.logits(batch), logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed.loss(batch), loss, rtol=1e-5, atol=1e-5)
    assert model.config.classifier_pooling == "mean"


def test_head_of_two_layers_keeps_its_dense_layer():
    packed = PooledModel(build("XLM-RoBERTa"), "rows")
    assert isinstance(packed.base.classifier.dense, nn.Linear)
    assert isinstance(packed.base.classifier.out_proj, LossHead)
    assert packed.head is packed.base.classifier.out_proj


@pytest.mark.parametrize("name", ["BERT", "Llama"])
def test_batch_without_texts_reaches_the_head(name):
    """A rank without work: the loss is 0, and every weight that others have a gradient of takes part."""
    model = build(name)
    packed = PooledModel(model, "rows", pooling=native_pooling(model))
    loss = packed.loss(collate([], 0, packed.row_width))
    assert float(loss.detach()) == 0.0
    found = gradients(model, loss)
    expected = gradients(model, packed.loss(collate(sequences(packed.pooling), 0, packed.row_width)))
    assert found.keys() == expected.keys()
    assert not any(gradient.any() for gradient in found.values())


def test_segments_of_a_pair_reach_the_model():
    model = build("BERT")
    (first, second) = sequences("first", lengths=(9, 6))
    pairs = [
        TokenizedSequence(
            s.input_ids, s.labels, s.example, s.alignment, [0] * 4 + [1] * (len(s.input_ids) - 4)
        )
        for s in (first, second)
    ]
    expected = [
        model(input_ids=torch.tensor([s.input_ids]), token_type_ids=torch.tensor([s.segments])).logits
        for s in pairs
    ]
    packed = PooledModel(model, "varlen", pooling="first").eval()
    found = packed.logits(collate(pairs, 0, packed.row_width))
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-5, atol=1e-5)
    without = packed.logits(collate([first, second], 0, packed.row_width))
    assert not torch.allclose(without, found, atol=1e-3)
