"""Runs with adapters, and of language models, as their user sees them."""

import json
import warnings
from pathlib import Path

import fangyan
import pytest
import torch
from safetensors.torch import load_file

RECIPE = Path(__file__).parents[2] / "trainer" / "fangyan" / "recipes" / "cantonese-pos.yaml"
LORA = ("adapt.method=lora", "adapt.rank=8", "optimizer.lr=5e-3", "optimizer.layer_decay=1.0")

SENTENCES = """今日天氣好好
我哋去飲茶啦
你食咗飯未呀
佢哋聽日返學
呢度啲嘢好平
我唔知點解會噉
不如一齊去睇戲
阿媽叫我買餸
落雨收衫喇
早晨，有冇位呀
"""

LANGUAGE_MODEL = """
name: ten
task: {name: language_modelling}
data: {format: text, train: ten.txt, dev: ten.txt}
model: {path: cantonese-qwen3, pretrained: false}
optimizer: {lr: 3.0e-3}
schedule: {warmup: 0.05}
train: {epochs: 25, batch_tokens: 64, log_every: 1}
"""


def adapter(cli, run="run"):
    return load_file(cli.folder / run / "model/adapter_model.safetensors")


@pytest.fixture(scope="module")
def tagger(tmp_path_factory, cli_in):
    cli = cli_in(tmp_path_factory.mktemp("tagger"))
    cli.train(*LORA, "train.epochs=3", "train.gradient_accumulation_steps=2")
    return cli


def test_the_adapter_is_pefts_own(tagger):
    """Plain PEFT on the base that was written beside it gives the run's own predictions."""
    from peft import AutoPeftModelForTokenClassification
    from transformers import AutoTokenizer

    folder = tagger.folder / "run" / "model"
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(tagger.folder / "run" / "base")
    labels = len(json.loads((folder / "config.json").read_text())["id2label"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a newer transformers, at PEFT
        model = AutoPeftModelForTokenClassification.from_pretrained(folder, num_labels=labels).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    predictor = fangyan.load(tagger.folder / "run")
    text = "你食咗飯未呀"
    (prediction,) = predictor.predict([text])
    inputs = tokenizer(list(text), is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        scores = model(**inputs).logits[0].log_softmax(-1)[1:-1]
    assert predictor._tagger.task.decode(scores.numpy()) == prediction.tags
    assert all(weight.any() for name, weight in adapter(tagger).items() if "lora_B" in name)


def test_merged_it_is_plain_transformers(tagger):
    tagger("export", str(tagger.folder / "run"), str(tagger.folder / "merged"), "--merge")
    merged = fangyan.load(tagger.folder / "merged")
    texts = ["你食咗飯未呀", "我哋聽日去睇戲"]
    assert merged.predict(texts) == fangyan.load(tagger.folder / "run").predict(texts)
    assert not (tagger.folder / "merged" / "adapter_config.json").exists()
    _, err = tagger("export", str(tagger.folder / "run"), str(tagger.folder / "merged"), code=2)
    assert "it exists, expected a new folder" in err


@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_train_the_same_adapter(cli, tagger, stage):
    cli.train(*LORA, "train.epochs=3", f"engine.zero_stage={stage}", ranks=2)
    assert [loss for _, loss in cli.losses()] == pytest.approx(
        [loss for _, loss in tagger.losses()], rel=1e-4
    )
    found, expected = adapter(cli), adapter(tagger)
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-2, atol=1e-3, msg=name)


@pytest.mark.parametrize("stage", [0, 3])
def test_four_bits_resume_exactly(cli, stage):
    """NF4 base, dropout, checkpointed layers: from a checkpoint in mid-run to the same losses."""
    options = (*LORA, "adapt.base=nf4", "adapt.dropout=0.1", "train.gradient_checkpointing=true")
    options += (f"engine.zero_stage={stage}", "optimizer.name=adamw8bit", "train.keep_checkpoints=9")
    cli.train(*options)
    whole = cli.losses()
    middle = cli.folder / "run/checkpoints/step-000004"
    assert sum(file.stat().st_size for file in middle.rglob("*.pt")) < 12e6, "frozen weights are in it"
    cli.train(*options, resume=middle)
    assert cli.losses() == whole
    assert whole[-1][1] < whole[0][1] / 1.3


def test_four_bits_on_two_ranks(cli, cli_in, tmp_path_factory):
    """Sharded by ZeRO-3, packed weights included, to the losses of one rank."""
    options = (*LORA, "adapt.base=nf4")
    cli.train(*options, "train.gradient_accumulation_steps=2")
    sharded = cli_in(tmp_path_factory.mktemp("sharded"))
    sharded.train(*options, "engine.zero_stage=3", ranks=2)
    assert [loss for _, loss in sharded.losses()] == pytest.approx(
        [loss for _, loss in cli.losses()], rel=1e-4
    )
    assert adapter(sharded).keys() == adapter(cli).keys()


@pytest.fixture(scope="module")
def language_model(tmp_path_factory, cli_in):
    cli = cli_in(tmp_path_factory.mktemp("lm"))
    (cli.folder / "ten.txt").write_text(SENTENCES)
    (cli.folder / "lm.yaml").write_text(LANGUAGE_MODEL)
    cli.out, _ = cli("train", "lm.yaml", "run_dir=run")
    return cli


def test_a_language_model_overfits_ten_sentences(language_model, monkeypatch):
    monkeypatch.chdir(language_model.folder)  # where its data is
    run = language_model.folder / "run"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = [r["character_perplexity"] for r in records if r["kind"] == "evaluation"]
    assert scores[0] > 1000
    assert scores[-1] < 3
    assert "character perplexity" in language_model.out
    assert f"{scores[-1]:.2f}" in language_model.out
    model = fangyan.load(run)
    assert model.evaluate()["character_perplexity"] == pytest.approx(scores[-1], rel=1e-4)
    assert model.predict(["今日天"]) == ["氣好好"]
    assert list(model.stream("我哋去飲")) != []
    out, _ = language_model("predict", str(run), "我哋去飲", "--max-new-tokens", "2")
    assert out == "我哋去飲茶啦\n"
    out, _ = language_model("predict", str(run), "落雨收", "--json")
    assert json.loads(out) == {"text": "落雨收", "continuation": "衫喇"}


def test_its_export_is_plain_transformers(language_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = language_model.folder / "run" / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer.bos_token_id, *tokenizer("你食咗飯", add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        following = int(model(torch.tensor([ids])).logits[0, -1].argmax())
    assert tokenizer.decode([following]) == "未"


@pytest.mark.parametrize("base", [None, "nf4"])
def test_an_adapter_on_a_language_model(language_model, monkeypatch, base):
    """Teaches the model of ten sentences an eleventh, of the same words."""
    monkeypatch.chdir(language_model.folder)
    folder = language_model.folder
    (folder / "new.txt").write_text("佢哋今日去飲茶\n" * 10)
    run = f"lora-{base}"
    options = ["model.path=run/model", "model.pretrained=true", "adapt.method=lora", "train.epochs=8"]
    options += ["data.train=new.txt", "data.dev=new.txt", f"run_dir={run}", "optimizer.lr=1e-2"]
    options += ["train.batch_tokens=10"]
    language_model("train", "lm.yaml", *options, *([f"adapt.base={base}"] if base else []))
    model = fangyan.load(folder / run)
    assert model.evaluate()["character_perplexity"] < 1.5
    assert model.predict(["佢哋今"]) == ["日去飲茶"]
    language_model("export", run, f"{run}-merged", "--merge")
    assert fangyan.load(folder / f"{run}-merged").predict(["佢哋今"]) == ["日去飲茶"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["adapt.base=nf4"], "adapt: base is nf4, but method full trains the weights; expected an adapter"),
        (["adapt.method=ia3", "adapt.base=nf4"], "base nf4 goes with lora and dora, found method ia3"),
        (["adapt.method=lora", "adapt.base=bf16"], "adapt.base is bf16, expected engine.precision's fp32"),
        (["adapt.method=prompt_tuning"], "expected train.packing=false"),
        (["adapt.method=adalora", "engine.zero_stage=2"], "adalora reads gradients; expected 0"),
        (["task.name=language_modelling"], "data.format is hkcancor, expected text or common_voice"),
        (["adapt.rank=0"], "adapt.rank"),
    ],
)
def test_what_cannot_be_is_refused_in_the_recipe(overrides, sentence):
    with pytest.raises(fangyan.UserError) as error:
        fangyan.load_recipe(RECIPE, overrides)
    assert sentence in str(error.value)
