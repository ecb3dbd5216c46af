"""The embedded ELECTRA, plain folders, and folders that are not models."""

import pytest
import torch
from fangyan.adapt.freeze import freeze
from fangyan.errors import UserError
from fangyan.models import load_token_classifier, max_length
from fangyan.models.electra_gguf import find_file, read_electra
from fangyan.recipe import Freeze, Model
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForTokenClassification, BertTokenizerFast

LABELS = ["B-n", "I-n", "B-v", "I-v"]


def test_the_embedded_electra_knows_cantonese():
    config, tokenizer, weights = read_electra(find_file())
    assert sum(weight.numel() for weight in weights.values()) == pytest.approx(5.9e6, rel=0.02)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (256, 6, 4)
    assert tokenizer.tokenize("我哋唔係") == ["我", "哋", "唔", "係"]
    # Trained, not random: closely related characters lie closer together than others.
    table = weights["electra.embeddings.word_embeddings.weight"]

    def likeness(left, right):
        ids = tokenizer.convert_tokens_to_ids([left, right])
        return torch.cosine_similarity(table[ids[0]], table[ids[1]], dim=0).item()

    assert likeness("一", "二") > 2 * likeness("一", "哋")


def test_pretrained_or_not_has_the_same_shape():
    pretrained, _ = load_token_classifier(Model(), LABELS, seed=0)
    random, _ = load_token_classifier(Model(pretrained=False), LABELS, seed=0)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (pretrained, random)]
    assert shapes[0] == shapes[1]
    again, _ = load_token_classifier(Model(pretrained=False), LABELS, seed=0)
    other, _ = load_token_classifier(Model(pretrained=False), LABELS, seed=1)
    key = "electra.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(random.state_dict()[key], again.state_dict()[key])
    assert not torch.equal(random.state_dict()[key], other.state_dict()[key])
    assert pretrained.config.id2label == dict(enumerate(LABELS))
    assert max_length(pretrained, None, "rows") == 512


@pytest.fixture
def bert_folder(tmp_path):
    config = BertConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=9,
    )
    BertForTokenClassification(config).save_pretrained(tmp_path)
    vocabulary = {
        token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"])
    }
    BertTokenizerFast(vocab=vocabulary).save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_with_a_head_for_other_tags(bert_folder):
    model, tokenizer = load_token_classifier(
        Model(path=str(bert_folder), hidden_dropout=0.25), LABELS, seed=0
    )
    saved = BertForTokenClassification.from_pretrained(bert_folder)
    assert model.classifier.out_features == len(LABELS)
    assert torch.equal(
        model.bert.embeddings.word_embeddings.weight, saved.bert.embeddings.word_embeddings.weight
    )
    assert model.config.hidden_dropout_prob == 0.25
    assert model.config.attention_probs_dropout_prob == 0.0
    assert tokenizer.is_fast


def test_a_folder_without_weights(bert_folder):
    (bert_folder / "model.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"model.path: no token classifier can be loaded from the folder .*safetensors"
    ):
        load_token_classifier(Model(path=str(bert_folder)), LABELS, seed=0)


def test_a_hub_name_that_cannot_be_reached(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        UserError, match=r"model.path: no token classifier can be loaded from the hub name or folder"
    ):
        load_token_classifier(Model(path="nobody/no-such-model"), LABELS, seed=0)


def test_more_positions_than_the_model_has():
    model, _ = load_token_classifier(Model(), LABELS, seed=0)
    assert max_length(model, 100, "rows") == 100
    with pytest.raises(UserError, match="model.max_length: 600, but the model takes 512 sub-words at most"):
        max_length(model, 600, "rows")
    # A block mask does not slide: no window may be longer than what a layer can see.
    model.config.sliding_window = 64
    assert max_length(model, None, "rows") == 64
    assert max_length(model, None, "varlen") == 512


@pytest.mark.parametrize("damage", ["cut short", "a weight missing"])
def test_damaged_weights(bert_folder, damage):
    path = bert_folder / "model.safetensors"
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:2000])
    else:
        weights = load_file(path)
        del weights["bert.encoder.layer.1.output.dense.weight"]
        save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="model.path: no token classifier can be loaded from the folder"):
        load_token_classifier(Model(path=str(bert_folder)), LABELS, seed=0)


def test_freezing():
    model, _ = load_token_classifier(Model(), LABELS, seed=0)
    frozen = freeze(model, Freeze(embeddings=True, layers="0-3"))
    names = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert any("word_embeddings" in name for name in names)
    assert {name.split(".")[3] for name in names if "encoder.layer" in name} == set("0123")
    assert not any("classifier" in name or "embeddings_project" in name for name in names)
    with pytest.raises(UserError, match="freeze.layers: layer 6, but the model has layers 0-5"):
        freeze(model, Freeze(layers=6))
