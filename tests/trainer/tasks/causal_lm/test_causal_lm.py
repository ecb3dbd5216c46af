"""A language model of ten sentences: its runs, its adapters and what it writes."""

import json
import math

import fangyan
import pytest
import torch
from fangyan.data.example import Example
from fangyan.tasks.causal_lm.task import CausalLM

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

RECIPE = """
name: ten
task: {name: causal_lm}
data: {format: text, train: ten.txt, dev: ten.txt}
model: {path: cantonese-qwen3, pretrained: false}
optimizer: {lr: 3.0e-3}
schedule: {warmup: 0.05}
train: {epochs: 40, batch_tokens: 64, log_every: 1}
"""


def test_metrics_by_hand():
    """Perplexities per character and per sub-word, whatever the batches were."""
    examples = [Example({"text": text}, "", "") for text in ("我哋", "飲茶啦")]
    metrics = CausalLM().metrics(examples, [(3.0, 2), (4.0, 5)])
    assert metrics == {
        "character_perplexity": pytest.approx(math.exp(7 / 5)),
        "subword_perplexity": pytest.approx(math.exp(7 / 7)),
        "bits_per_character": pytest.approx(7 / 5 / math.log(2)),
    }
    assert metrics.keys() == set(CausalLM().metric_names)
    assert CausalLM().metrics(examples, [(1e6, 1)])["subword_perplexity"] == math.inf
    assert not CausalLM().greater_is_better


@pytest.fixture(scope="module")
def language_model(tmp_path_factory, cli_in):
    cli = cli_in(tmp_path_factory.mktemp("lm"))
    (cli.folder / "ten.txt").write_text(SENTENCES, encoding="utf-8")
    (cli.folder / "lm.yaml").write_text(RECIPE, encoding="utf-8")
    cli.out, _ = cli("train", "lm.yaml", "run_dir=run")
    return cli


@pytest.mark.slow
def test_train_overfits_ten_sentences(language_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # away from the data
    run = language_model.folder / "run"
    scores = [r["character_perplexity"] for r in language_model.records() if r["kind"] == "evaluation"]
    assert scores[0] > 1000
    assert scores[-1] < 3
    assert "character perplexity" in language_model.out
    assert f"{scores[-1]:.2f}" in language_model.out
    assert fangyan.evaluate(run)["character_perplexity"] == pytest.approx(scores[-1], rel=1e-4)
    model = fangyan.load(run)
    assert model.predict(["今日天"]) == ["氣好好"]
    (continuation,) = model.stream(["我哋去飲"])
    assert "".join(continuation.pieces()) == "我哋去飲茶啦"
    out, _ = language_model("predict", str(run), "我哋去飲", "--max-new-tokens", "2")
    assert out == "我哋去飲茶啦\n"
    out, _ = language_model("predict", str(run), "落雨收", "--json")
    assert json.loads(out) == {"text": "落雨收", "continuation": "衫喇"}


@pytest.mark.slow
def test_predict_samples_by_the_seed(language_model):
    """With a temperature, not the most likely sub-word alone; and the same by the same seed."""
    model = fangyan.load(language_model.folder / "run")
    assert model.predict(["今日天"], max_new_tokens=1) == ["氣"]
    sampled = []
    for _ in range(2):
        torch.manual_seed(0)
        sampled.append(model.predict(["我"] * 8, max_new_tokens=8, temperature=3.0))
    assert sampled[0] == sampled[1]
    assert len(set(sampled[0])) > 1


@pytest.mark.slow
def test_export_is_plain_transformers(language_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = language_model.folder / "run" / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer.bos_token_id, *tokenizer("你食咗飯", add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        following = int(model(torch.tensor([ids])).logits[0, -1].argmax())
    assert tokenizer.decode([following]) == "未"


@pytest.mark.slow
@pytest.mark.ranks
def test_train_scaled_logits_and_tied_weights_on_two_ranks(language_model):
    """A Cohere: ZeRO-3 gathers the embeddings for its head, and its layers are computed twice."""
    from transformers import AutoTokenizer, CohereConfig, CohereForCausalLM

    folder = language_model.folder
    tokenizer = AutoTokenizer.from_pretrained(folder / "run" / "model")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    config = CohereConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes, **special)
    CohereForCausalLM(config).save_pretrained(folder / "cohere")
    tokenizer.save_pretrained(folder / "cohere")
    options = ("model.path=cohere", "model.pretrained=true", "train.epochs=4")
    options += ("train.gradient_checkpointing=true", "optimizer.eps=1e-6")
    language_model("train", "lm.yaml", *options, "run_dir=one", "train.gradient_accumulation_steps=2")
    language_model("train", "lm.yaml", *options, "run_dir=two", "engine.zero_stage=3", ranks=2)
    one, two = ([loss for _, loss in language_model.losses(run)] for run in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-5)
    assert one[-1] < one[0]
    assert one[0] == pytest.approx(math.log(len(tokenizer)), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_train_an_adapter_on_a_language_model(language_model, tmp_path, monkeypatch, quantization):
    """Teaches the model of ten sentences an eleventh, of the same words."""
    monkeypatch.chdir(tmp_path)  # away from the data, and from the base
    folder = language_model.folder
    (folder / "new.txt").write_text("佢哋今日去飲茶\n" * 10, encoding="utf-8")
    run = f"lora-{quantization}"
    options = ["model.path=run/model", "model.pretrained=true", "adaptation.name=lora", "train.epochs=8"]
    options += ["data.train=new.txt", "data.dev=new.txt", f"run_dir={run}", "optimizer.lr=1e-2"]
    options += ["train.batch_tokens=10"]
    if quantization:
        options.append(f"adaptation.quantization={quantization}")
    language_model("train", "lm.yaml", *options)
    config = json.loads((folder / run / "model" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "../../run/model"
    assert fangyan.evaluate(folder / run)["character_perplexity"] < 1.5
    assert fangyan.load(folder / run).predict(["佢哋今"]) == ["日去飲茶"]
    language_model("export", run, f"{run}-merged", "--merge")
    assert fangyan.load(folder / f"{run}-merged").predict(["佢哋今"]) == ["日去飲茶"]
    # A copy elsewhere finds the base in its own folder still.
    language_model("export", run, str(tmp_path / "copy"))
    assert fangyan.load(tmp_path / "copy").predict(["佢哋今"]) == ["日去飲茶"]
