"""The packaged ELECTRA, plain folders, and folders that are not models."""

from pathlib import Path

import pytest
import torch
from fangyan.adaptation.quantization import quantize
from fangyan.errors import UserError
from fangyan.models.loading import ModelConfig, cast_weights
from fangyan.models.packaged.cantonese_qwen3 import read_cantonese_qwen3
from fangyan.models.packaged.electra import read_electra
from fangyan.models.structure import fingerprint, max_length, new_modules
from fangyan.tasks.causal_lm.task import CausalLM
from fangyan.tasks.token_classification.task import TokenClassification
from fangyan_kernels.lora_linear.base_weights import dequantize
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, BertConfig, BertForTokenClassification, BertTokenizerFast

LABELS = ["B-n", "I-n", "B-v", "I-v"]


def load(seed=0, **config):
    """A token classifier and its tokenizer."""
    task = TokenClassification(LABELS, "segmentation")
    return ModelConfig(**config).load(task.auto_model, seed, task.model_kwargs(), task.tokenizer_kwargs)


def test_read_electra_knows_cantonese():
    electra = read_electra(pretrained=True)
    config, tokenizer, weights = electra.config, electra.tokenizer, electra.weights
    assert sum(weight.numel() for weight in weights.values()) == pytest.approx(5.9e6, rel=0.02)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (256, 6, 4)
    assert tokenizer.tokenize("我哋唔係") == ["我", "哋", "唔", "係"]
    # Trained, not random: closely related characters lie closer together than others.
    table = weights["electra.embeddings.word_embeddings.weight"]

    def likeness(left, right):
        ids = tokenizer.convert_tokens_to_ids([left, right])
        return torch.cosine_similarity(table[ids[0]], table[ids[1]], dim=0).item()

    assert likeness("一", "二") > 2 * likeness("一", "哋")
    assert read_electra(pretrained=False).weights is None


def test_load_pretrained_and_random_have_the_same_shape():
    pretrained, _ = load()
    random, _ = load(pretrained=False)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (pretrained, random)]
    assert shapes[0] == shapes[1]
    again, _ = load(pretrained=False)
    other, _ = load(pretrained=False, seed=1)
    key = "electra.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(random.state_dict()[key], again.state_dict()[key])
    assert not torch.equal(random.state_dict()[key], other.state_dict()[key])
    assert pretrained.config.id2label == dict(enumerate(LABELS))
    assert max_length(pretrained, None) == 512


def test_fingerprint_tells_weights_apart():
    """All but those of new modules, which are random until an adapter replaces them."""
    model, _ = load()
    new = new_modules(model, "classifier")
    assert new == ["classifier"]
    found = fingerprint(model, new)
    assert found == fingerprint(load(seed=1)[0], new)
    random, other = (fingerprint(load(pretrained=False, seed=seed)[0], new) for seed in (0, 1))
    assert len({found, random, other}) == 3
    with torch.no_grad():
        model.electra.encoder.layer[5].output.dense.bias[0] += 1e-3
    assert fingerprint(model, new) != found


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


def test_load_folder_with_a_head_for_other_labels(bert_folder):
    model, tokenizer = load(path=str(bert_folder), hidden_dropout=0.25)
    saved = BertForTokenClassification.from_pretrained(bert_folder)
    assert model.classifier.out_features == len(LABELS)
    assert torch.equal(
        model.bert.embeddings.word_embeddings.weight, saved.bert.embeddings.word_embeddings.weight
    )
    assert model.config.hidden_dropout_prob == 0.25
    assert model.config.attention_probs_dropout_prob == 0.0
    assert tokenizer.is_fast


def test_load_folder_without_weights(bert_folder):
    (bert_folder / "model.safetensors").unlink()
    message = r"model.path: AutoModelForTokenClassification cannot be loaded from the folder .*safetensors"
    with pytest.raises(UserError, match=message):
        load(path=str(bert_folder))


def test_load_hub_name_that_cannot_be_reached(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = "model.path: AutoModelForTokenClassification cannot be loaded from the hub name or folder"
    with pytest.raises(UserError, match=message):
        load(path="nobody/no-such-model")


def test_load_packaged_model_of_another_kind():
    with pytest.raises(UserError, match="model.path: cantonese-electra is no AutoModelForSeq2SeqLM"):
        ModelConfig().load(AutoModelForSeq2SeqLM, seed=0)


def test_read_cantonese_qwen3_has_no_weights():
    with pytest.raises(UserError, match="model.pretrained: cantonese-qwen3 .* without weights"):
        ModelConfig(path="cantonese-qwen3").load(CausalLM().auto_model, seed=0)
    tokenizer = read_cantonese_qwen3(pretrained=False).tokenizer
    ids = tokenizer("我哋去飲茶", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "我哋去飲茶"


def test_max_length_beyond_the_models_positions():
    model, _ = load()
    assert max_length(model, 100) == 100
    with pytest.raises(UserError, match="model.max_length: 600, but the model takes 512 sub-words at most"):
        max_length(model, 600)


@pytest.mark.parametrize("damage", ["cut short", "a weight missing"])
def test_load_damaged_weights(bert_folder, damage):
    path = bert_folder / "model.safetensors"
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:2000])
    else:
        weights = load_file(path)
        del weights["bert.encoder.layer.1.output.dense.weight"]
        save_file(weights, path, metadata={"format": "pt"})
    message = "model.path: AutoModelForTokenClassification cannot be loaded from the folder"
    with pytest.raises(UserError, match=message):
        load(path=str(bert_folder))


@pytest.fixture
def half_folder(bert_folder):
    """The same weights in bfloat16."""
    path = bert_folder / "model.safetensors"
    weights = {name: weight.bfloat16() for name, weight in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    return bert_folder


def test_load_weights_of_16_bits(half_folder):
    """Weights, new ones too, are what transformers loads in float32."""
    task = TokenClassification(LABELS, "segmentation")
    torch.manual_seed(3)
    config = BertConfig.from_pretrained(half_folder, **task.model_kwargs(), attention_probs_dropout_prob=0.0)
    expected = BertForTokenClassification.from_pretrained(
        half_folder, config=config, dtype=torch.float32, ignore_mismatched_sizes=True
    )
    model, _ = load(seed=3, path=str(half_folder))
    assert model.dtype == torch.float32
    assert model.config.dtype == torch.float32
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    stored, _ = ModelConfig(path=str(half_folder)).load(
        task.auto_model, 3, task.model_kwargs(), task.tokenizer_kwargs, as_stored=True
    )
    dtypes = {name: p.dtype for name, p in stored.named_parameters()}
    new = {"classifier.weight", "classifier.bias"}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == new
    assert fingerprint(stored, ["classifier"]) == fingerprint(model, ["classifier"])
    # One rounding, whether here or by DeepSpeed.
    cast_weights(stored, torch.bfloat16)
    assert torch.equal(stored.classifier.weight, expected.classifier.weight.bfloat16())


def test_load_weights_of_several_dtypes_in_the_widest(half_folder):
    path = half_folder / "model.safetensors"
    weights = load_file(path)
    name = "bert.encoder.layer.0.output.LayerNorm.weight"
    weights[name] = torch.rand(16)
    save_file(weights, path, metadata={"format": "pt"})
    task = TokenClassification(LABELS, "segmentation")
    model, _ = ModelConfig(path=str(half_folder)).load(
        task.auto_model, 0, task.model_kwargs(), task.tokenizer_kwargs, as_stored=True
    )
    assert model.dtype == torch.float32
    assert torch.equal(model.get_parameter(name), weights[name])


def test_load_as_stored_maps_the_files(half_folder):
    """Weights are the files' own pages: no copy of them is in memory."""
    task = TokenClassification(LABELS, "segmentation")
    model, _ = ModelConfig(path=str(half_folder)).load(
        task.auto_model, 0, task.model_kwargs(), task.tokenizer_kwargs, as_stored=True
    )
    address = model.bert.encoder.layer[0].output.dense.weight.data_ptr()
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        first, _, last = line.split()[0].partition("-")
        if int(first, 16) <= address < int(last, 16):
            assert line.endswith("model.safetensors")
            return
    raise AssertionError("the weight is in no mapping")


def test_quantize_from_16_bits_as_from_32(half_folder):
    task = TokenClassification(LABELS, "segmentation")
    packed = []
    for as_stored in (False, True):
        model, _ = ModelConfig(path=str(half_folder)).load(
            task.auto_model, 0, task.model_kwargs(), task.tokenizer_kwargs, as_stored=as_stored
        )
        quantize(model, ["classifier"], torch.float32)
        packed.append(model.bert.encoder.layer[0].output.dense.weight)
    assert torch.equal(packed[0], packed[1])
    assert torch.equal(dequantize(packed[0]), dequantize(packed[1]))
    assert dequantize(packed[1]).dtype == torch.float32
