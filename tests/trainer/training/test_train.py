"""A whole run, as its user sees it, and what it leaves behind."""

import json

import fangyan
import pytest
import torch
from fangyan.models.packaged.electra import read_electra
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


def test_train_learns_and_says_so(finished):
    folder = finished.folder / "run"
    assert {p.name for p in folder.iterdir()} == {
        "recipe.yaml", "metrics.jsonl", "checkpoints", "model", "log.txt", "splits", "reports",
    }  # fmt: skip
    assert {p.name for p in (folder / "splits").iterdir()} == {"dev.jsonl", "test.jsonl"}
    records = finished.records()
    scores = {(r["split"], r["step"]): r for r in records if r["kind"] == "evaluation"}
    last = max(step for _, step in scores)
    assert scores["test", 0]["joint_f1"] < 5 < 40 < scores["test-best", last]["joint_f1"]
    losses = [loss for _, loss in finished.losses()]
    assert losses[-1] < losses[0] / 1.5
    assert "Before and after (percent)" in finished.out
    assert f"{scores['test-best', last]['joint_f1']:.2f}" in finished.out
    assert f"run folder: {folder}" in finished.out


def test_train_records_its_speed_and_time(finished):
    """The speed at each read of the losses, and at the end the time of each part of the run."""
    lines = (finished.folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = list(map(json.loads, lines))
    speeds = [record for record in records if record["kind"] == "speed"]
    assert [record["step"] for record in speeds] == [step for step, _ in finished.losses()]
    assert all(0 < record["tokens_per_second"] < 1e6 for record in speeds)
    assert all(0.1 < record["memory_gb"] < 10 for record in speeds)
    time = records[-1]
    assert (time["kind"], time["step"], time["epoch"]) == ("time", speeds[-1]["step"], 3)
    seconds = {name: value for name, value in time.items() if name.endswith("_s")}
    assert set(seconds) == {"steps_s", "evaluation_s", "checkpoint_s", "other_s"}
    assert all(value > 0 for value in seconds.values())


def test_train_stops_early_and_exports_the_best_checkpoint(cli):
    """At such a rate the first epoch is the best: the run stops after it and exports it."""
    _, err = cli.train(
        "optimizer.lr=0.02", "train.epochs=9", "train.early_stopping=1", "train.checkpoint_every=null"
    )
    epochs = [line for line in err.splitlines() if line.startswith("epoch")]
    assert 2 <= len(epochs) < 9
    file = cli.folder / "run/checkpoints/last/state.json"
    state = json.loads(file.read_text(encoding="utf-8"))["state"]
    assert state["finished"]
    assert state["best_step"] < state["step"]
    best = (cli.folder / "run/checkpoints/best").resolve().name
    assert best == f"step-{state['best_step']:06d}"
    exported = next(r for r in cli.records() if r.get("split") == "dev-best")
    assert exported["joint_f1"] == pytest.approx(state["best_score"])
    assert fangyan.evaluate(cli.folder / "run")["joint_f1"] == pytest.approx(state["best_score"])


def test_train_leaves_frozen_parameters(cli):
    frozen = ("adaptation.freeze_embeddings=true", "adaptation.freeze_layers=0-3")
    frozen += ("model.path=cantonese-electra",)
    cli.train(*frozen, "train.epochs=1", "optimizer={name: sgd, lr: 1e-3, layer_decay: 0.85}")
    trained = load_file(cli.folder / "run/model/model.safetensors")
    original = read_electra(pretrained=True).weights
    same = {name for name in original if torch.equal(original[name], trained[name])}
    assert {name for name in original if "word_embeddings" in name or ".layer.3." in name} <= same
    assert not {name for name in original if ".layer.5." in name and "weight" in name} & same


def test_train_keeps_an_earlier_run(cli):
    cli.train("train.epochs=1")
    (cli.folder / "run" / "mine.txt").write_text("x", encoding="utf-8")
    _, err = cli.train("train.epochs=1")
    assert "the earlier run is kept as" in err
    assert (cli.folder / "run.1" / "mine.txt").exists()
    assert not (cli.folder / "run" / "mine.txt").exists()


@pytest.mark.parametrize("packing", ["true", "false"])
def test_train_entities_from_the_users_own_files(cli, monkeypatch, packing):
    """CoNLL in, padded or packed, with fractions held out: entity F1 out, and again from any folder."""
    sentences = [
        [("我", "O"), ("喺", "O"), (place, "B-LOC"), (suffix, "I-LOC"), ("住", "O")]
        for place in "港九深廣佛中東西"
        for suffix in "村城島市角"
    ]
    text = "\n".join("".join(f"{token}\t{tag}\n" for token, tag in sentence) for sentence in sentences)
    (cli.folder / "places.conll").write_text(text, encoding="utf-8")
    out, _ = cli.train(
        "data.format=conll",
        "data.train=places.conll",
        "data.dev=0.2",
        f"train.packing={packing}",
        "train.epochs=8",
        "optimizer.lr=2e-3",
    )
    assert "entity f1" in out
    (prediction,) = fangyan.load(cli.folder / "run").predict(["我 喺 港 村 住"])
    assert prediction.tags == ("O", "O", "B-LOC", "I-LOC", "O")
    expected = next(r for r in cli.records() if r.get("split") == "dev-best")
    (cli.folder / "places.conll").unlink()
    (cli.folder / "elsewhere").mkdir()
    (cli.folder / "run").rename(cli.folder / "elsewhere" / "moved")
    monkeypatch.chdir(cli.folder / "elsewhere")
    found = fangyan.evaluate("moved")
    assert found == {name: pytest.approx(expected[name]) for name in found}
    assert "entity_f1" in found
