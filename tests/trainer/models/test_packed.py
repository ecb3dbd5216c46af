"""A packed batch returns what each sentence returns alone, for encoders and causal models."""

import copy
from dataclasses import replace

import adapted_models
import fangyan_kernels
import pytest
import torch
from fangyan.data.packing import collate
from fangyan.data.tokenization import IGNORE_INDEX, TokenizedSequence, WordAlignment
from fangyan.device import on_gpu
from fangyan.errors import UserError
from fangyan.models import attention
from fangyan.models.attention import varlen_attention
from fangyan.models.dropout import ByteDropout, use_byte_dropout
from fangyan.models.layout import choose_layout
from fangyan.models.loss_head import LossHead
from fangyan.models.masks import packed_masks
from fangyan.models.packed import PackedModel, boundaries
from fangyan.models.structure import head_name, position_offset
from torch import nn
from transformers import (
    AutoModelForTokenClassification,
    BertConfig,
    DebertaV2Config,
    ElectraConfig,
    LlamaConfig,
    Qwen2Config,
    XLMRobertaConfig,
)

SMALL = adapted_models.SMALL | {"num_labels": 5}
ENCODERS = {
    "bert": BertConfig(**SMALL),
    "electra": ElectraConfig(embedding_size=16, **SMALL),
    "xlm-roberta": XLMRobertaConfig(type_vocab_size=1, **SMALL),
}
CAUSAL = {
    "qwen2": Qwen2Config(num_key_value_heads=2, use_sliding_window=False, **SMALL),
    "llama": LlamaConfig(num_key_value_heads=4, **SMALL),
}
CONFIGS = ENCODERS | CAUSAL


def build(config, layout, seed=0):
    torch.manual_seed(seed)
    # A copy: a model keeps its attention's name there.
    model = AutoModelForTokenClassification.from_config(copy.deepcopy(config), dtype=torch.float32)
    model.load_state_dict(
        {k: torch.randn_like(v) * 0.3 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    )
    return PackedModel(model.eval(), layout)


def make_sequences(lengths=(7, 1, 30, 12, 12, 3)):
    generator = torch.Generator().manual_seed(1)
    sequences = []
    for i, length in enumerate(lengths):
        ids = torch.randint(1, 60, (length,), generator=generator).tolist()
        labels = torch.randint(5, (length,), generator=generator).tolist()
        sequences.append(TokenizedSequence(ids, [*labels[:-1], IGNORE_INDEX], i))
    return sequences


def spans(logits, batch):
    """The logits of each sequence."""
    return [
        logits[row, column : column + len(sequence.input_ids)]
        for sequence, (row, column) in zip(batch.sequences, batch.offsets, strict=True)
    ]


def run(packed, sequences):
    """Logits of every sequence, the loss over all of them, and the gradient of every weight."""
    batch = collate(sequences, 0, packed.row_width)
    with torch.no_grad():
        logits = packed.logits(batch)
    loss = packed.loss(batch)
    loss.backward()
    gradients = {name: p.grad for name, p in packed.named_parameters() if p.grad is not None}
    return spans(logits, batch), loss, gradients


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("layout", ["rows", "padded"])
def test_packed_model_is_each_sentence_alone(name, layout):
    sequences = make_sequences()
    logits, loss, gradients = run(build(CONFIGS[name], layout), sequences)
    alone = build(CONFIGS[name], "padded")
    expected_loss = 0.0
    for sequence, found in zip(sequences, logits, strict=True):
        one, one_loss, _ = run(alone, [sequence])
        torch.testing.assert_close(found, one[0], rtol=1e-4, atol=1e-5)
        expected_loss += one_loss.item()
    assert loss.item() == pytest.approx(expected_loss, rel=1e-5)
    expected = {name: p.grad for name, p in alone.named_parameters() if p.grad is not None}
    assert gradients.keys() == expected.keys()
    assert all(gradient.abs().sum() > 0 for key, gradient in gradients.items() if "key.bias" not in key)
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_is_cross_entropy_of_the_logits(name):
    sequences = make_sequences()
    logits, loss, _ = run(build(CONFIGS[name], "rows"), sequences)
    labels = torch.tensor([label for sequence in sequences for label in sequence.labels])
    expected = nn.functional.cross_entropy(
        torch.cat(logits), labels, reduction="sum", ignore_index=IGNORE_INDEX
    )
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("layout", ["rows", "padded", "unpadded"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_head_inputs_make_the_logits(name, layout, mean):
    packed = build(CONFIGS[name], layout)
    sequences = make_sequences()
    if mean:  # words of three sub-words, but for what is left
        for i, sequence in enumerate(sequences):
            places = [*range(2, len(sequence.input_ids), 3)]
            alignment = WordAlignment(places, 0, (0, len(places)), len(places), [3] * len(places))
            sequences[i] = replace(sequence, alignment=alignment)
    batch = collate(sequences, 0, packed.row_width)
    with torch.no_grad():
        hidden, logits = spans(packed.head_inputs(batch), batch), spans(packed.logits(batch), batch)
        for states, expected in zip(hidden, logits, strict=True):
            torch.testing.assert_close(packed.head(states), expected, rtol=1e-4, atol=1e-5)


def test_loss_is_divided_and_smoothed():
    packed, sequences = build(CONFIGS["bert"], "rows"), make_sequences()
    batch = collate(sequences, 0, packed.row_width)
    assert packed.loss(batch, 4.0).item() == pytest.approx(packed.loss(batch).item() / 4, rel=1e-6)
    labels = torch.tensor([label for sequence in sequences for label in sequence.labels])
    expected = nn.functional.cross_entropy(
        torch.cat(spans(packed.logits(batch), batch)),
        labels,
        reduction="sum",
        ignore_index=IGNORE_INDEX,
        label_smoothing=0.1,
    )
    torch.testing.assert_close(packed.loss(batch, label_smoothing=0.1), expected)


def test_position_offset_of_roberta_is_behind_the_padding_row():
    assert position_offset(build(CONFIGS["xlm-roberta"], "rows").model) == 1
    assert position_offset(build(CONFIGS["bert"], "rows").model) == 0


def test_loss_of_an_empty_batch_touches_the_head():
    packed = build(CONFIGS["bert"], "rows")
    loss = packed.loss(collate([], 0, packed.row_width))
    loss.backward()
    assert loss.item() == 0.0
    assert packed.head.weight.grad.abs().sum() == 0


def test_loss_head_keeps_parameters_and_names():
    model = AutoModelForTokenClassification.from_config(CONFIGS["bert"])
    keys, weight = model.state_dict().keys(), model.classifier.weight
    PackedModel(model, "rows")
    assert isinstance(model.classifier, LossHead)
    assert model.classifier.weight is weight
    assert model.state_dict().keys() == keys


def test_head_name_without_a_head():
    with pytest.raises(UserError, match="no linear head with 9 outputs"):
        head_name(AutoModelForTokenClassification.from_config(CONFIGS["bert"]), 9)


def test_packed_model_of_its_own_attention_is_refused():
    """It would let packed sequences see each other; padded it runs."""
    config = DebertaV2Config(**SMALL)
    model = AutoModelForTokenClassification.from_config(config)
    with pytest.raises(
        UserError, match="DebertaV2ForTokenClassification has its own attention.*train.packing=false"
    ):
        PackedModel(model, "rows")
    logits, loss, _ = run(build(config, "padded"), make_sequences())
    assert loss.item() > 0
    assert len(logits) == 6


def test_use_byte_dropout():
    model = AutoModelForTokenClassification.from_config(CONFIGS["bert"])
    use_byte_dropout(model)
    assert not [m for m in model.modules() if type(m) is nn.Dropout]
    layer = ByteDropout(0.1).train()
    ones = torch.ones(1 << 16, requires_grad=True)
    torch.manual_seed(0)
    dropped = layer(ones)
    dropped.sum().backward()
    torch.testing.assert_close(ones.grad, dropped.detach())
    # Every place in the eight that share a draw is dropped alike; 5 standard deviations.
    share = (dropped == 0).float().view(-1, 8).mean(0)
    assert ((share - 26 / 256).abs() < 5 * (0.1 * 0.9 / 8192) ** 0.5).all()
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.01)
    torch.manual_seed(0)
    assert torch.equal(layer(ones), dropped)
    assert layer.eval()(ones) is ones
    odd = ByteDropout(0.5).train()(torch.ones(3, 7, dtype=torch.bfloat16))
    assert odd.dtype == torch.bfloat16
    assert set(odd.flatten().tolist()) <= {0.0, 2.0}


def test_varlen_attention_refuses_dropout():
    states = torch.zeros(1, 2, 3, 8)
    with pytest.raises(UserError, match=r"model.attention_dropout: .* expected 0"):
        varlen_attention(nn.Identity(), states, states, states, None, dropout=0.1)


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_model_varlen_is_each_sentence_alone(name):
    sequences = make_sequences()
    rows, varlen = (run(build(CONFIGS[name], layout), sequences) for layout in ("rows", "varlen"))
    for left, right in zip(rows[0], varlen[0], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
    for key, gradient in varlen[2].items():
        torch.testing.assert_close(gradient, rows[2][key], rtol=1e-3, atol=1e-4, msg=key)


def attention_by_sequence(query, key, value, offsets, _, longest, __, *, scale, window_size):
    """Do by ours what the GPU's variable-length kernel is documented to do."""
    assert int(offsets.diff().max()) <= longest
    return fangyan_kernels.varlen_attention(query, key, value, offsets, window=window_size, scale=scale)


class NotTheCpu:
    """A tensor that says it is on a GPU."""

    def __init__(self, tensor):
        self._tensor, self.device, self.shape = tensor, torch.device("cuda"), tensor.shape

    def __getitem__(self, index):
        return self._tensor[index]

    def repeat_interleave(self, *arguments, **options):
        return self._tensor.repeat_interleave(*arguments, **options)


@pytest.mark.parametrize("causal", [False, True])
def test_varlen_attention_passes_the_gpus_kernel_what_ours_takes(monkeypatch, causal):
    """All of the GPU's path but its kernel, whose documented meaning stands in for it."""
    monkeypatch.setattr(attention, "varlen_attn", attention_by_sequence)
    query, key, value = (torch.randn(1, heads, 12, 8) for heads in (4, 2, 2))
    offsets = torch.tensor([0, 5, 12], dtype=torch.int32)
    options = {"cu_seq_lens_q": offsets, "max_length_q": 7, "is_causal": causal, "sliding_window": 4}
    ours, _ = varlen_attention(nn.Identity(), query, key, value, None, **options)
    theirs, _ = varlen_attention(nn.Identity(), *map(NotTheCpu, (query, key, value)), None, **options)
    torch.testing.assert_close(ours, theirs)


SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


@pytest.mark.skipif(on_gpu(), reason="a GPU chooses by the precision")
@pytest.mark.parametrize(
    ("config", "dropout", "layout", "reason"),
    [
        (BertConfig, 0.0, "varlen", None),
        (BertConfig, 0.1, "rows", "kept apart by masks, which is slower: model.attention_dropout is not 0"),
        (DebertaV2Config, 0.0, "padded", "DebertaV2ForTokenClassification has its own attention"),
    ],
)
def test_choose_layout_says_what_is_not_the_usual(config, dropout, layout, reason):
    model = AutoModelForTokenClassification.from_config(config(vocab_size=50, **SIZES))
    packed = PackedModel(model, "padded")
    messages = choose_layout(packed, True, False, dropout)
    assert packed.layout == layout
    assert [reason in message for message in messages] == [True] * bool(reason)
    assert choose_layout(packed, False, False, dropout) == []
    assert packed.layout == "padded"


def test_choose_layout_of_a_gpu_with_attention_dropout(monkeypatch):
    """Its kernel has none either, which the first training step would find."""
    monkeypatch.setattr("fangyan.models.layout.on_gpu", lambda: True)
    model = AutoModelForTokenClassification.from_config(BertConfig(vocab_size=50, **SIZES))
    packed = PackedModel(model, "padded")
    (message,) = choose_layout(packed, True, True, 0.1)
    assert packed.layout == "rows"
    assert "model.attention_dropout is not 0" in message


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert", [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        ("llama", [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    ],
)
def test_packed_masks(name, expected):
    model = build(CONFIGS[name], "rows").base
    places = torch.tensor([[1, 1, 2, 0]]), torch.tensor([[0, 1, 0, 0]])
    mask = packed_masks(model, *places, causal=name in CAUSAL)
    assert (mask[0, 0] == 0).int().tolist() == expected
    assert mask.max() == 0


def test_boundaries_of_one_row():
    offsets, longest = boundaries(collate(make_sequences([3, 1, 5]), 0, None))
    assert offsets.tolist() == [0, 3, 4, 9, 64]  # and the row's empty end
    assert offsets.dtype == torch.int32
    assert longest == 55


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA GPU: the variable-length kernel has no other"
)
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_model_varlen_is_the_block_mask(name):
    found = []
    for layout in ("rows", "varlen"):
        packed = build(CONFIGS[name], layout).cuda().bfloat16()
        batch = collate(make_sequences(), 0, packed.row_width).to(torch.device("cuda"))
        found.append(spans(packed.logits(batch), batch))
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_name_among_layers_of_its_size(dtype):
    """By what is called last: here the first of them, in another dtype than the rest."""
    config = BertConfig(**SMALL | {"num_labels": 32})
    model = AutoModelForTokenClassification.from_config(config, dtype=dtype)
    classifier, body = model.classifier.float(), model.bert
    del model.classifier, model.bert
    model.classifier, model.bert = classifier, body
    assert list(dict(model.named_children())) == ["dropout", "classifier", "bert"]
    assert head_name(model, 32) == "classifier"
