"""Runs with adapters, as their user sees them."""

import json
import re
import warnings

import fangyan
import pytest
import torch
from fangyan.tasks.token_classification.decoding import make_decoder
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.slow

LORA = ("adaptation.name=lora", "adaptation.rank=8", "optimizer.lr=5e-3", "optimizer.layer_decay=1.0")
# The real one, whose weights an export keeps beside an adapter.
ELECTRA = "model.path=cantonese-electra"
TEXTS = ["你食咗飯未呀", "我哋聽日去睇戲"]


def few(cli):
    """Options of data on which an epoch takes a second."""
    text = "".join(f"我\tB-r\n{word}\tB-v\n飯\tB-n\n\n" for word in "食煮買賣冇有" * 3)
    (cli.folder / "few.conll").write_text(text, encoding="utf-8")
    return ("data.format=conll", "data.train=few.conll", "data.dev=few.conll", "train.batch_tokens=15")


def adapter(cli, run="run"):
    return load_file(cli.folder / run / "model/adapter_model.safetensors")


def base_of(folder):
    """The base model's name in an adapter's configuration."""
    path = folder / "adapter_config.json"
    return json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]


@pytest.fixture(scope="module")
def tagger(tmp_path_factory, cli_in):
    cli = cli_in(tmp_path_factory.mktemp("tagger"))
    cli.train(*LORA, ELECTRA, "train.epochs=3", "train.gradient_accumulation_steps=2")
    return cli


def test_export_of_an_adapter_is_pefts_own(tagger, monkeypatch):
    """Plain PEFT on the base that is written beside it returns the run's own predictions."""
    from peft import AutoPeftModelForTokenClassification
    from transformers import AutoTokenizer

    folder = tagger.folder / "run" / "model"
    assert base_of(folder) == "base"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    monkeypatch.chdir(folder)  # PEFT takes the base's folder as it stands
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a newer transformers, at PEFT
        model = AutoPeftModelForTokenClassification.from_pretrained(".", num_labels=len(config["id2label"]))
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    predictor = fangyan.load(tagger.folder / "run")
    decode = make_decoder(predictor.task.labels, predictor.task.scheme)
    for text, prediction in zip(TEXTS, predictor.predict(TEXTS), strict=True):
        inputs = tokenizer(list(text), is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            scores = model(**inputs).logits[0].log_softmax(-1)[1:-1]
        tags = tuple(predictor.task.labels[i] for i in decode(scores.numpy()))
        assert tags == prediction.tags
    assert all(weight.any() for name, weight in adapter(tagger).items() if "lora_B" in name)


def test_load_refuses_an_adapter_on_other_weights(tagger, tmp_path):
    """Of the same shapes: nothing else would say that it is not the base it was trained on."""
    fangyan.export(tagger.folder / "run", tmp_path / "export")
    path = tmp_path / "export" / "base" / "model.safetensors"
    weights = load_file(path)
    weights["electra.encoder.layer.2.output.dense.weight"] += 1e-3
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(fangyan.UserError, match="has other weights than the adapter was trained on"):
        fangyan.load(tmp_path / "export")


def test_merge_is_plain_transformers(tagger):
    tagger("export", str(tagger.folder / "run"), str(tagger.folder / "merged"), "--merge")
    merged = fangyan.load(tagger.folder / "merged")
    assert merged.predict(TEXTS) == fangyan.load(tagger.folder / "run").predict(TEXTS)
    assert not (tagger.folder / "merged" / "adapter_config.json").exists()
    _, err = tagger("export", str(tagger.folder / "run"), str(tagger.folder / "merged"), code=2)
    assert "it exists, expected a new folder" in err


@pytest.mark.ranks
@pytest.mark.parametrize("stage", [2, 3])
def test_train_lora_on_two_ranks_is_one_rank(cli, tagger, stage):
    cli.train(*LORA, ELECTRA, "train.epochs=3", f"engine.zero_stage={stage}", ranks=2)
    assert [loss for _, loss in cli.losses()] == pytest.approx(
        [loss for _, loss in tagger.losses()], rel=1e-4
    )
    found, expected = adapter(cli), adapter(tagger)
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-2, atol=1e-3, msg=name)


@pytest.mark.parametrize("stage", [0, 3])
def test_train_nf4_resumes_exactly(cli, stage):
    """NF4 base, dropout, checkpointed layers: from a checkpoint in mid-run to the same losses."""
    options = (*LORA, ELECTRA, *few(cli), "adaptation.quantization=nf4", "adaptation.dropout=0.1")
    options += ("train.gradient_checkpointing=true", f"engine.zero_stage={stage}")
    options += ("optimizer.name=adamw8bit", "train.keep_checkpoints=9")
    _, err = cli.train(*options)
    frozen = re.search(r"([\d,]+) frozen parameters; ", err)[1]
    assert int(frozen.replace(",", "")) > 5.8e6, "bytes of 4-bit weights are counted"
    whole = cli.losses()
    middle = cli.folder / "run/checkpoints/step-000004"
    assert sum(file.stat().st_size for file in middle.rglob("*.pt")) < 12e6, "frozen weights are in it"
    cli.train(*options, resume=middle)
    assert cli.losses() == whole
    assert whole[-1][1] < whole[0][1] / 1.3


def test_train_adalora_resumes_exactly(cli):
    """From a checkpoint in the middle of moving ranks to the same losses, adapter and ranks."""
    options = [*few(cli), "adaptation.name=adalora", "adaptation.rank=4", "optimizer.lr=5e-3"]
    options += ["train.epochs=4", "train.keep_checkpoints=9"]
    cli.train(*options)
    whole, expected = cli.losses(), adapter(cli)
    assert len({len(weight) for name, weight in expected.items() if "lora_A" in name}) > 1
    steps = sorted(path.name for path in (cli.folder / "run/checkpoints").glob("step-*"))
    cli.train(*options, resume=cli.folder / "run/checkpoints" / steps[1])
    assert cli.losses() == whole
    found = adapter(cli)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_train_osf_sharded_is_whole_and_merges(cli):
    """Its hooks turn gradients before ZeRO-3 shards them; merged, it tags as it did."""
    options = (*few(cli), "adaptation.name=osf", "optimizer.lr=5e-3", "train.epochs=2")
    cli.train(*options)
    whole = [loss for _, loss in cli.losses()]
    assert whole[-1] < whole[0] / 1.3
    cli("export", "run", "merged", "--merge")
    merged = fangyan.load(cli.folder / "merged")
    assert merged.predict(TEXTS) == fangyan.load(cli.folder / "run").predict(TEXTS)
    cli.train(*options, "engine.zero_stage=3")
    assert [loss for _, loss in cli.losses()] == pytest.approx(whole, rel=1e-3)


@pytest.mark.ranks
def test_train_nf4_on_two_ranks_is_one_rank(cli, cli_in, tmp_path_factory):
    """Sharded by ZeRO-3, packed weights included, to the losses of one rank."""
    options = (*LORA, *few(cli), "adaptation.quantization=nf4")
    cli.train(*options, "train.gradient_accumulation_steps=2")
    sharded = cli_in(tmp_path_factory.mktemp("sharded"))
    few(sharded)
    sharded.train(*options, "engine.zero_stage=3", ranks=2)
    assert [loss for _, loss in sharded.losses()] == pytest.approx(
        [loss for _, loss in cli.losses()], rel=1e-4
    )
    assert adapter(sharded).keys() == adapter(cli).keys()
