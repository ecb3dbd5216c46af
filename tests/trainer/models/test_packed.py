"""A packed batch gives what each sentence gives alone, for encoders and causal models."""

import fangyan_kernels
import pytest
import torch
from fangyan.data.encode import IGNORE, Window
from fangyan.data.packing import collate
from fangyan.errors import UserError
from fangyan.models import attention
from fangyan.models.attention import takes_boundaries, varlen_attention
from fangyan.models.dropout import ByteDropout, use_byte_dropout
from fangyan.models.head import LossHead
from fangyan.models.packed import PackedModel, position_offset
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    BertConfig,
    DebertaV2Config,
    ElectraConfig,
    Gemma2Config,
    LlamaConfig,
    Qwen2Config,
    XLMRobertaConfig,
)

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 100,
    "num_labels": 5,
    "pad_token_id": 0,
}
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
    model = AutoModelForTokenClassification.from_config(config, dtype=torch.float32)
    model.load_state_dict(
        {k: torch.randn_like(v) * 0.3 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    )
    return PackedModel(model.eval(), config.num_labels, layout)


def make_windows(lengths=(7, 1, 30, 12, 12, 3)):
    generator = torch.Generator().manual_seed(1)
    windows = []
    for length in lengths:
        ids = torch.randint(1, 60, (length,), generator=generator).tolist()
        targets = torch.randint(5, (length,), generator=generator).tolist()
        windows.append(Window(ids, list(range(length)), 0, (0, length), [*targets[:-1], IGNORE]))
    return windows


def run(packed, windows):
    """Logits of every window, the loss over all of them, and the gradient of every weight."""
    batch = collate(windows, 0, packed.row_width)
    with torch.no_grad():
        logits = packed(batch, with_loss=False)
    loss = packed(batch)
    loss.backward()
    gradients = {name: p.grad for name, p in packed.named_parameters() if p.grad is not None}
    places = zip(batch.places, batch.lengths, strict=True)
    return [logits[row, column : column + length] for (row, column), length in places], loss, gradients


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("layout", ["rows", "padded"])
def test_packed_is_each_sentence_alone(name, layout):
    windows = make_windows()
    logits, loss, gradients = run(build(CONFIGS[name], layout), windows)
    alone = build(CONFIGS[name], "padded")
    expected_loss = 0.0
    for window, found in zip(windows, logits, strict=True):
        one, one_loss, _ = run(alone, [window])
        torch.testing.assert_close(found, one[0], rtol=1e-4, atol=1e-5)
        expected_loss += one_loss.item()
    assert loss.item() == pytest.approx(expected_loss, rel=1e-5)
    expected = {name: p.grad for name, p in alone.named_parameters() if p.grad is not None}
    assert gradients.keys() == expected.keys()
    assert all(gradient.abs().sum() > 0 for key, gradient in gradients.items() if "key.bias" not in key)
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_is_cross_entropy_of_the_logits(name):
    windows = make_windows()
    logits, loss, _ = run(build(CONFIGS[name], "rows"), windows)
    targets = torch.tensor([target for window in windows for target in window.targets])
    expected = nn.functional.cross_entropy(torch.cat(logits), targets, reduction="sum", ignore_index=IGNORE)
    torch.testing.assert_close(loss, expected)


def test_positions_of_roberta_start_behind_the_padding_row():
    assert position_offset(build(CONFIGS["xlm-roberta"], "rows").model) == 1
    assert position_offset(build(CONFIGS["bert"], "rows").model) == 0


def test_a_batch_without_work_touches_the_head():
    packed = build(CONFIGS["bert"], "rows")
    loss = packed(collate([], 0, packed.row_width))
    loss.backward()
    assert loss.item() == 0.0
    assert packed.head.weight.grad.abs().sum() == 0


def test_the_head_keeps_its_parameters_and_names():
    model = AutoModelForTokenClassification.from_config(CONFIGS["bert"])
    keys, weight = model.state_dict().keys(), model.classifier.weight
    PackedModel(model, 5, "rows")
    assert isinstance(model.classifier, LossHead)
    assert model.classifier.weight is weight
    assert model.state_dict().keys() == keys


def test_no_head_is_said():
    with pytest.raises(UserError, match="no linear head with 9 outputs"):
        PackedModel(AutoModelForTokenClassification.from_config(CONFIGS["bert"]), 9, "rows")


def test_a_model_with_its_own_attention_is_refused():
    """It would let packed sequences see each other; padded it runs."""
    config = DebertaV2Config(**SMALL)
    model = AutoModelForTokenClassification.from_config(config)
    with pytest.raises(
        UserError, match="DebertaV2ForTokenClassification has its own attention.*train.packing=false"
    ):
        PackedModel(model, 5, "rows")
    logits, loss, _ = run(build(config, "padded"), make_windows())
    assert loss.item() > 0
    assert len(logits) == 6


def test_byte_dropout():
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
def test_one_long_row_is_each_sentence_alone(name):
    windows = make_windows()
    rows, varlen = (run(build(CONFIGS[name], layout), windows) for layout in ("rows", "varlen"))
    for left, right in zip(rows[0], varlen[0], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
    for key, gradient in varlen[2].items():
        torch.testing.assert_close(gradient, rows[2][key], rtol=1e-3, atol=1e-4, msg=key)


def attention_by_sequence(query, key, value, offsets, _, longest, __, *, scale, window_size):
    """What the GPU's variable-length kernel is documented to do, by ours."""
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
def test_the_gpus_kernel_is_given_what_ours_is(monkeypatch, causal):
    """All of the GPU's path but its kernel, whose documented meaning stands in for it."""
    monkeypatch.setattr(attention, "varlen_attn", attention_by_sequence)
    query, key, value = (torch.randn(1, heads, 12, 8) for heads in (4, 2, 2))
    offsets = torch.tensor([0, 5, 12], dtype=torch.int32)
    options = {"cu_seq_lens_q": offsets, "max_length_q": 7, "is_causal": causal, "sliding_window": 4}
    ours, _ = varlen_attention(nn.Identity(), query, key, value, None, **options)
    theirs, _ = varlen_attention(nn.Identity(), *map(NotTheCpu, (query, key, value)), None, **options)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", CONFIGS)
def test_models_that_take_boundaries_are_found(name):
    model = AutoModelForTokenClassification.from_config(CONFIGS[name]).train()
    assert takes_boundaries(model, position_offset(model))
    assert model.training


def test_models_that_cannot_keep_the_mask():
    """An attention of its own; and one that caps its scores, which the kernels do not."""
    deberta = AutoModelForTokenClassification.from_config(DebertaV2Config(**SMALL))
    assert not takes_boundaries(deberta, 0)
    config = Gemma2Config(head_dim=8, num_key_value_heads=2, **SMALL)
    assert not takes_boundaries(AutoModelForCausalLM.from_config(config), 0)


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA GPU: the variable-length kernel has no other"
)
@pytest.mark.parametrize("name", CONFIGS)
def test_varlen_is_the_block_mask(name):
    windows = make_windows()
    rows, varlen = (build(CONFIGS[name], layout).cuda().bfloat16() for layout in ("rows", "varlen"))
    for packed in (rows, varlen):
        packed.logits = packed(
            collate(windows, 0, packed.row_width).to(torch.device("cuda")), with_loss=False
        )
    batches = [collate(windows, 0, packed.row_width) for packed in (rows, varlen)]
    for i, length in enumerate(batches[0].lengths):
        left, right = (
            packed.logits[batch.places[i][0], batch.places[i][1] : batch.places[i][1] + length]
            for packed, batch in zip((rows, varlen), batches, strict=True)
        )
        torch.testing.assert_close(left, right, rtol=0.05, atol=0.05)
