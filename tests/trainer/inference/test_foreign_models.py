"""Model folders from strangers: nothing in them runs, and damage ends in one sentence that names the file."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import fangyan
import pytest
import tiny_exports
import torch
from fangyan.errors import UserError
from fangyan.models.loading import ModelConfig
from model_families import BY_NAME
from safetensors.torch import load_file, save_file
from tiny_runs import exported, workload
from transformers import AutoModelForTokenClassification

CODE = """
open({marker!r}, "w").close()
from transformers import PretrainedConfig, PreTrainedTokenizerFast
class Config(PretrainedConfig):
    model_type = "planted"
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


def change(path, **fields):
    content = json.loads(path.read_text(encoding="utf-8"))
    changed = {name: v for name, v in (content | fields).items() if v is not ...}
    path.write_text(json.dumps(changed), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    return tiny_exports.tagger(tmp_path / "model")


def plant(folder, marker, file):
    """Put code into a model's folder that its files name."""
    (folder / "planted.py").write_text(CODE.format(marker=str(marker)), encoding="utf-8")
    if file == "config.json":
        change(folder / file, model_type="planted", auto_map={"AutoConfig": "planted.Config"})
    else:
        classes = {"AutoTokenizer": [None, "planted.Tokenizer"]}
        change(folder / file, tokenizer_class="Planted", auto_map=classes)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["predict", "train"])
def test_a_line_of_data_never_agrees_to_run_a_models_code(folder, tmp_path, command):
    """By the real command, whose standard input is the data."""
    plant(folder, tmp_path / "ran", "config.json")
    (tmp_path / "train.txt").write_text("我\tB-n\n食\tB-v\n", encoding="utf-8")
    data = ["data.format=conll", "data.train=train.txt", "data.dev=train.txt", "data.test=null"]
    arguments = {
        "predict": ["predict", str(folder), "--input", "-"],
        "train": ["train", "cantonese-pos", f"model.path={folder}", *data],
    }[command]
    result = command_with_a_line(arguments, tmp_path)
    err = result.stderr.decode()
    assert not (tmp_path / "ran").exists()
    assert result.returncode == 2, err
    assert result.stdout == b""
    assert err.count("\n") == 1
    assert "code of its own, which fangyan never runs" in err


@pytest.mark.slow
def test_a_tokenizers_own_code_gives_way_to_transformers(folder, tmp_path):
    plant(folder, tmp_path / "ran", "tokenizer_config.json")
    result = command_with_a_line(["predict", str(folder), "--input", "-"], tmp_path)
    assert not (tmp_path / "ran").exists()
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.count(b"\n") == 2  # the line is data


def command_with_a_line(arguments, folder):
    return subprocess.run(
        [sys.executable, "-m", "fangyan", *arguments],
        cwd=folder,
        input="y\n你好\n".encode(),
        capture_output=True,
        env=os.environ | {"HF_MODULES_CACHE": str(folder / "modules")},
    )


class Payload:
    """A pickle that makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def pickled(folder, name, marker):
    torch.save({"classifier.bias": Payload(marker)}, folder / name)


def test_pickled_weights_with_a_class(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    pickled(folder, "pytorch_model.bin", tmp_path / "ran")
    sentence = "pytorch_model.bin: it holds more than tensors, and was not read"
    with pytest.raises(UserError, match=sentence):
        fangyan.load(folder)
    with pytest.raises(UserError, match=sentence):
        ModelConfig(path=str(folder)).load(AutoModelForTokenClassification, 0)
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_a_plain_pickle(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(UserError, match="pytorch_model.bin: "):
        fangyan.load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"hidden_size": "x"}, "config.json: .*hidden_size"),
        ({"hidden_size": 24}, "weight .* does not fit config.json"),
        (
            {"id2label": {"0": "B-n"}, "label2id": {"B-n": 0}},
            "id2label: .*I-n is missing",
        ),
        ({"id2label": 5}, "config.json: "),
        ({"id2label": {"0": 1, "1": "x", "2": "y", "3": "z"}}, "config.json: "),
        ({"id2label": {"0": "a", "1": "b", "2": "c", "7": "d"}}, "config.json: "),
        ({"model_type": 5}, "config.json: "),
        ({"model_type": "no such"}, "config.json: "),
        ({"dtype": "x"}, "config.json: |model.safetensors"),
        ({"fangyan": 5}, "config.json: fangyan is '5', expected fields"),
        ({"fangyan": {"task": ["x"]}}, "config.json: fangyan: task is"),
    ],
)
def test_damaged_configuration(folder, fields, sentence):
    change(folder / "config.json", **fields)
    with pytest.raises(UserError, match=sentence) as raised:
        fangyan.load(folder)
    assert len(str(raised.value)) < 600
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("field", ["tokens", "notation", "scheme", "subword", "layout", "max_length", "task"])
@pytest.mark.parametrize("value", [..., 5.5, "x", None, [], {}])
def test_damaged_field_of_an_export(folder, field, value):
    inference = json.loads((folder / "config.json").read_text(encoding="utf-8"))["fangyan"]
    inference |= {field: value}
    if value is ...:
        del inference[field]
    change(folder / "config.json", fangyan=inference)
    with pytest.raises(UserError, match=f"config.json: fangyan.*{field}"):
        fangyan.load(folder)


@pytest.mark.parametrize("content", ["{}", "5", "[]", "x", "", '{"model": 5}', '{"added_tokens": 7}'])
def test_damaged_tokenizer(folder, content):
    (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="tokenizer.json"):
        fangyan.load(folder)
    with pytest.raises(UserError, match="tokenizer.json"):
        ModelConfig(path=str(folder)).load(AutoModelForTokenClassification, 0)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter beside its base, as a run exports it."""
    folder = tmp_path_factory.mktemp("adapter")
    return exported(workload(BY_NAME["Llama"], folder), folder / "model")


def test_adapter_and_base_that_hold_a_class(adapter, tmp_path):
    pickled_adapter = shutil.copytree(adapter, tmp_path / "adapter")
    (pickled_adapter / "adapter_model.safetensors").unlink()
    pickled(pickled_adapter, "adapter_model.bin", tmp_path / "ran")
    change(pickled_adapter / "adapter_config.json", base_model_name_or_path=str(adapter.parent / "base"))
    with pytest.raises(UserError, match="adapter_model.bin: it holds more than tensors"):
        fangyan.load(pickled_adapter)
    base = shutil.copytree(adapter.parent / "base", tmp_path / "base")
    (base / "model.safetensors").unlink()
    pickled(base, "pytorch_model.bin", tmp_path / "ran")
    of_pickled = shutil.copytree(adapter, tmp_path / "other")
    change(of_pickled / "adapter_config.json", base_model_name_or_path=str(base))
    with pytest.raises(UserError, match="pytorch_model.bin: it holds more than tensors"):
        fangyan.load(of_pickled)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", ["{}", "5", "[]", "x", '{"base_model_name_or_path": 5}'])
def test_damaged_adapter_config(adapter, tmp_path, content):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    (folder / "adapter_config.json").write_text(content, encoding="utf-8")
    for use in (fangyan.load, lambda folder: fangyan.export(folder, tmp_path / "copy")):
        with pytest.raises(UserError, match="adapter_config.json: "):
            use(folder)
    assert not list(tmp_path.glob("copy*"))


WHOLE_BASE = {"new": [], "fingerprint": "x", "quantization": None}


@pytest.mark.parametrize(
    "base",
    [
        *(5, {}, {"new": []}, WHOLE_BASE),
        *({**WHOLE_BASE, "vocab_size": size} for size in ("x", None, 0, True)),
        *({**WHOLE_BASE, "new": new} for new in (5, "x", [5])),
        *({**WHOLE_BASE, "quantization": name} for name in (5, "fp3")),
    ],
    ids=str,
)
def test_damaged_base_of_an_adapter(adapter, tmp_path, base):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    change(folder / "adapter_config.json", base_model_name_or_path=str(adapter.parent / "base"))
    inference = json.loads((folder / "config.json").read_text(encoding="utf-8"))["fangyan"]
    change(folder / "config.json", fangyan=inference | {"base": base})
    with pytest.raises(UserError, match="fangyan.base|its base model .* has other weights"):
        fangyan.load(folder)


def test_weight_missing_from_an_export(folder):
    """A new head would be random, and every tag with it."""
    weights = load_file(folder / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="model.safetensors: its weight classifier.weight is missing"):
        fangyan.load(folder)
