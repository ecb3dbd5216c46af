"""What ranks compare before the first step; which weights are new to a model."""

import pytest
from fangyan.errors import UserError
from fangyan.recipe import parse_recipe
from fangyan.training.workload import Workload
from model_families import BY_NAME, save
from safetensors.torch import load_file, save_file
from tiny_runs import run_of, workload
from transformers import AutoModel, AutoModelForMaskedLM


@pytest.mark.parametrize("pretrained", [True, False])
def test_digests_tell_other_weights_of_the_same_shapes(tmp_path, pretrained):
    """Unless they are not used."""
    full = {"adaptation": {"name": "full"}}
    first = workload(BY_NAME["BERT"], tmp_path, **full).digests()
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    save_file({name: -7 * weight for name, weight in weights.items()}, file, {"format": "pt"})
    model = {"path": str(tmp_path / "base"), "pretrained": pretrained}
    if not pretrained:
        first = run_of(BY_NAME["BERT"], tmp_path, model=model, **full).digests()
    second = run_of(BY_NAME["BERT"], tmp_path, model=model, **full).digests()
    assert {name for name in first if first[name] != second[name]} == (
        {"model.path"} if pretrained else set()
    )


TEXTS = {"name": "new", "data": {"format": "text", "train": "t.txt", "dev": 0.2}}


@pytest.fixture
def texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "\n".join(f"w{i} w{i + 1} w{i + 2}" for i in range(10, 40))
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("adaptation", ["full", "lora"])
@pytest.mark.usefixtures("texts")
def test_new_parameters_are_those_that_the_files_lack(adaptation):
    """Of a head for the vocabulary, not the weight that it shares with the embeddings."""
    save(BY_NAME["BERT"], "base", AutoModel)
    content = {"task": {"name": "masked_lm"}, "model": {"path": "base"}, "adaptation": {"name": adaptation}}
    found = Workload(parse_recipe({**TEXTS, **content}))
    names = {name for name, own in found.model.named_parameters() if id(own) in found.new_parameters}
    assert all(".cls.predictions." in name for name in names)
    prefix = "modules_to_save.default." if adaptation == "lora" else ""
    kinds = [
        "bias",
        *(f"transform.{part}.{k}" for part in ("dense", "LayerNorm") for k in ("weight", "bias")),
    ]
    assert {name.rpartition("predictions.")[2] for name in names} == {f"{prefix}{kind}" for kind in kinds}


@pytest.mark.usefixtures("texts")
def test_new_parameters_before_the_head(tmp_path):
    """A masked language model has no pooler, which a classifier reads."""
    save(BY_NAME["BERT"], "base", AutoModelForMaskedLM)
    lines = [f'{{"text": "w{i} w11", "label": "{"ab"[i % 2]}"}}' for i in range(10, 40)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    data = {"format": "jsonl", "train": "t.jsonl", "dev": 0.2}
    content = {"data": data, "task": {"name": "sequence_classification"}, "model": {"path": "base"}}
    found = Workload(parse_recipe({"name": "new", **content}))
    names = {name for name, own in found.model.named_parameters() if id(own) in found.new_parameters}
    modules = ("bert.pooler.dense", "classifier")
    assert names == {f"model.{module}.{kind}" for module in modules for kind in ("weight", "bias")}


@pytest.mark.parametrize("objective", ["ewc", "distillation"])
@pytest.mark.usefixtures("texts")
def test_a_model_at_random_has_nothing_to_keep(objective):
    save(BY_NAME["Llama"], "base")
    section = {"name": objective, **({"data": TEXTS["data"]} if objective == "ewc" else {})}
    model = {"path": "base", "pretrained": False}
    content = {**TEXTS, "task": {"name": "causal_lm"}, "model": model, "objective": section}
    with pytest.raises(UserError, match="the model's head is new"):
        Workload(parse_recipe(content))
