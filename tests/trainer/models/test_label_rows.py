"""A tagger that goes on with other labels keeps the rows of those it knows."""

import shutil

import pytest
import torch
from fangyan.models.loading import ModelConfig
from model_families import BY_NAME, save
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification

OLD = ["a", "b", "c"]


@pytest.fixture
def folder(tmp_path):
    labels = {"id2label": dict(enumerate(OLD)), "label2id": {label: i for i, label in enumerate(OLD)}}
    model = save(BY_NAME["BERT"], tmp_path / "old", AutoModelForTokenClassification, **labels)
    torch.nn.init.normal_(model.classifier.bias)
    model.save_pretrained(tmp_path / "old")
    return tmp_path / "old", model.classifier


def load(folder, labels):
    fields = {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    return ModelConfig(path=str(folder)).load(AutoModelForTokenClassification, 0, fields, as_stored=True)[0]


@pytest.mark.parametrize("labels", [["c", "a", "b"], ["b"], ["x", "c", "a", "y", "b"], ["x", "y", "z"], OLD])
def test_rows_go_with_their_labels(folder, labels):
    """In another order (which transformers takes for the same head), fewer, more, none."""
    path, old = folder
    model = load(path, labels)
    for i, label in enumerate(labels):
        if label in OLD:
            assert torch.equal(model.classifier.weight[i], old.weight[OLD.index(label)])
            assert model.classifier.bias[i] == old.bias[OLD.index(label)]
        elif labels != ["x", "y", "z"]:  # as many: transformers keeps the head, as plain fine-tuning does
            assert not (model.classifier.weight[i] == old.weight).all(-1).any()
    is_known = set(labels) <= set(OLD)
    assert ("classifier.weight" in model.new_weights) != is_known
    assert ("classifier.bias" in model.new_weights) != is_known
    assert not [name for name in model.new_weights if not name.startswith("classifier")]


@pytest.mark.parametrize("kind", ["sharded", "bin", "hub"])
def test_rows_of_files_of_any_kind(folder, tmp_path, monkeypatch, kind):
    path, old = folder
    weights = path / "model.safetensors"
    if kind == "sharded":
        model = AutoModelForTokenClassification.from_pretrained(path)
        weights.unlink()
        model.save_pretrained(path, max_shard_size="20KB")
    elif kind == "bin":
        torch.save(load_file(weights), path / "pytorch_model.bin")
        weights.unlink()
    else:  # as huggingface_hub keeps what it has downloaded
        cache = tmp_path / "hub/models--someone--tagger"
        (cache / "refs").mkdir(parents=True)
        (cache / "refs/main").write_text("0" * 40, encoding="utf-8")
        shutil.copytree(path, cache / "snapshots" / ("0" * 40))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        path = "someone/tagger"
    model = load(path, ["c", "a", "b"])
    assert torch.equal(model.classifier.weight, old.weight[[2, 0, 1]])
    assert torch.equal(model.classifier.bias, old.bias[[2, 0, 1]])
    assert not model.new_weights


def test_files_are_left_as_they_are(folder):
    path, _ = folder
    before = (path / "model.safetensors").read_bytes()
    load(path, ["c", "b", "a"])
    assert (path / "model.safetensors").read_bytes() == before
