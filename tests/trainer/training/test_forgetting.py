"""What is forgotten is scored and said; a model replays earlier texts, or its own."""

import json
import re

import fangyan
import numpy as np
import pytest
import torch
import yaml
from fangyan.errors import UserError
from fangyan.recipe import parse_recipe
from fangyan.training.forgetting import forgetting
from fangyan.training.workload import Workload
from model_families import BY_NAME, save


def test_forgetting_in_points_and_percent():
    before = {"dev": {"f1": 50.0}, "test": {"f1": 40.0}, "retain/old": {"f1": 80.0}}
    after = {"dev": {"f1": 60.0}, "test": {"f1": 55.0}, "retain/old": {"f1": 78.5}}
    assert forgetting(before, after, "f1", True, "percent") == [
        "old: f1 80.00 before, 78.50 after: 1.50 points worse",
        "dev: f1 50.00 before, 60.00 after: 10.00 points better",
        "test: f1 40.00 before, 55.00 after: 15.00 points better",
    ]
    perplexity = forgetting({"retain/old": {"p": 10.0}}, {"retain/old": {"p": 10.5}}, "p", False, "")
    assert perplexity == ["old: p 10.00 before, 10.50 after: 5.00 % worse"]
    for score in (0.0, float("inf")):
        same = {"retain/old": {"p": score}}
        unit = "" if score else "percent"
        assert forgetting(same, same, "p", False, unit) == [
            f"old: p {score:.2f} before, {score:.2f} after: unchanged"
        ]
    assert not forgetting({"dev": {"f1": 1.0}}, {"dev": {"f1": 2.0}}, "f1", True, "percent")


@pytest.fixture
def content(tmp_path):
    """A tiny causal model, and two sets of texts."""
    save(BY_NAME["Llama"], tmp_path / "base")
    random = np.random.default_rng(0)
    for name, low, number in (("new", 40, 60), ("old", 10, 30)):
        lines = [" ".join(f"w{i}" for i in random.integers(low, low + 20, 12)) for _ in range(number)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    return {
        "name": "replay",
        "run_dir": str(tmp_path / "run"),
        "task": {"name": "causal_lm"},
        "data": {
            "format": "text",
            "train": str(tmp_path / "new.txt"),
            "cache_dir": str(tmp_path / "cache"),
            "replay": {"share": 0.25, "source": {"format": "text", "train": str(tmp_path / "old.txt")}},
        },
        "model": {"path": str(tmp_path / "base")},
        "optimizer": {"lr": 1.0e-2},
        "train": {"epochs": 40, "batch_tokens": 128},
        "retain": [{"name": "old", "format": "text", "train": str(tmp_path / "old.txt")}],
    }


def shares(workload, own):
    """Which share of the sub-words of each epoch is replayed."""
    found = []
    for epoch in range(len(workload.batches)):
        seen = [i for batch in workload.batches[epoch] for i in batch]
        replayed = [i for i in seen if workload.sequences[i].example >= own]
        found.append(workload.lengths[replayed].sum() / workload.lengths[seen].sum())
    return found


def test_replay_of_earlier_texts(content):
    workload = Workload(parse_recipe(content))
    own = sum(example.source.partition(":")[0].endswith("new.txt") for example in workload.splits["train"])
    assert len(workload.splits["train"]) == own + 27  # of 30, less a tenth for a dev split of their own
    assert len(workload.splits["dev"]) == 6
    assert np.mean(shares(workload, own)) == pytest.approx(0.25, abs=0.02)
    assert any("data.replay: 27 examples" in message for message in workload.messages)


def test_replay_of_its_own_texts(content, tmp_path):
    """Written once, and read by later runs; other seeds write others."""
    content["data"]["replay"] = {"share": 0.25, "source": "self", "texts": 7}
    first = Workload(parse_recipe(content))
    texts = [example.fields["text"] for example in first.splits["train"][54:]]
    assert 1 <= len(texts) <= 7
    assert all(re.fullmatch(r"(w\d+|user|assistant|system|\s)+", text) for text in texts)
    assert np.mean(shares(first, 54)) == pytest.approx(0.25, abs=0.03)
    (file,) = (tmp_path / "cache").glob("own-texts-*.json")
    written = json.loads(file.read_text(encoding="utf-8"))
    written[0] = "w1 w2 w3"
    file.write_text(json.dumps(written), encoding="utf-8")
    again = Workload(parse_recipe(content))
    assert again.splits["train"][54].fields["text"] == "w1 w2 w3"
    file.write_text(json.dumps(written)[:-3], encoding="utf-8")
    repaired = Workload(parse_recipe(content))
    assert [example.fields["text"] for example in repaired.splits["train"][54:]] == texts
    other = Workload(parse_recipe({**content, "seed": 1}))
    assert [example.fields["text"] for example in other.splits["train"][54:]] != texts
    assert first.digests() == repaired.digests()


def test_its_own_texts_leave_other_randomness_alone(content):
    """An adapter begins with the same weights, whether the texts are written or read."""
    content["data"]["replay"] = {"share": 0.25, "source": "self", "texts": 3}
    content["adaptation"] = {"name": "lora", "rank": 2, "alpha": 2}
    weights = [dict(Workload(parse_recipe(content)).model.named_parameters()) for _ in range(2)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def own_texts_of(content):
    content["data"]["replay"] = {"share": 0.25, "source": "self", "texts": 4}
    return [example.fields["text"] for example in Workload(parse_recipe(content)).splits["train"][54:]]


def test_its_own_texts_are_of_its_own_distribution(content, tmp_path):
    """Not of what its folder says of how to generate."""
    plain = own_texts_of(content)
    settings = {"do_sample": True, "min_p": 0.9, "repetition_penalty": 2.0, "no_repeat_ngram_size": 2}
    (tmp_path / "base/generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    content["data"]["cache_dir"] = str(tmp_path / "another")
    assert own_texts_of(content) == plain


def test_its_own_texts_are_no_longer_than_the_model_takes(content, tmp_path):
    """GPT-2's positions end there."""
    save(BY_NAME["GPT-2"], tmp_path / "short", n_positions=100)
    content["model"] = {"path": str(tmp_path / "short")}
    assert own_texts_of(content)


def test_its_own_texts_need_a_beginning(content, tmp_path):
    path = tmp_path / "base/tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    del settings["eos_token"]
    path.write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(UserError, match="the model has no token that begins a text; expected data"):
        own_texts_of(content)


@pytest.mark.slow
def test_a_run_says_what_it_has_forgotten(content, cli):
    (cli.folder / "r.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    out, _ = cli("train", "r.yaml", "train.epochs=2")
    records = cli.records()
    before, after = (
        next(r["character_perplexity"] for r in records if r.get("split") == split)
        for split in ("retain/old", "retain/old-best")
    )
    assert f"old: character perplexity {before:.2f} before, {after:.2f} after: " in out
    found = fangyan.evaluate(cli.folder / "run", [content["retain"][0]["train"]])
    assert found["character_perplexity"] == pytest.approx(after, rel=1e-4)
    card = (cli.folder / "run/model/README.md").read_text(encoding="utf-8")
    assert "retain/old after" in card
