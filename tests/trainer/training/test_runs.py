"""A whole run, as its user sees it, and what it leaves behind."""

import json

import fangyan
import pytest
import torch
from fangyan.data.hkcancor import corpus_folder, read_conversation
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForTokenClassification, AutoTokenizer


def test_it_learns_and_says_so(finished):
    folder = finished.folder / "run"
    assert {p.name for p in folder.iterdir()} == {
        "recipe.yaml", "metrics.jsonl", "tensorboard", "checkpoints", "model", "log.txt",
    }  # fmt: skip
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = {(r["part"], r["step"]): r for r in records if r["kind"] == "evaluation"}
    last = max(step for _, step in scores)
    assert scores["test", 0]["joint_f1"] < 5 < 40 < scores["test-best", last]["joint_f1"]
    losses = [loss for _, loss in finished.losses()]
    assert losses[-1] < losses[0] / 1.5
    assert "Before and after (percent)" in finished.out
    assert f"{scores['test-best', last]['joint_f1']:.2f}" in finished.out
    assert f"run folder: {folder}" in finished.out


def test_tensorboard_has_every_step(finished):
    board = EventAccumulator(str(finished.folder / "run" / "tensorboard")).Reload()
    events = board.Scalars("train/loss")
    assert [(event.step, pytest.approx(event.value)) for event in events] == finished.losses()


def test_the_export_is_plain_transformers(finished):
    """The same tags, sentence by sentence, from transformers alone and from fangyan."""
    folder = finished.folder / "run"
    model = AutoModelForTokenClassification.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert type(model).__name__ == "ElectraForTokenClassification"
    assert load_file(folder / "model" / "model.safetensors").keys() == model.state_dict().keys()
    examples = read_conversation(corpus_folder() / "FC-R011_v.cha", characters=True)[:60]
    predictor = fangyan.load(folder)
    predictions = predictor.predict(["".join(example.tokens) for example in examples])
    agreeing = total = 0
    for example, prediction in zip(examples, predictions, strict=True):
        assert prediction.tokens == example.tokens
        inputs = tokenizer(list(example.tokens), is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            scores = model(**inputs).logits[0].log_softmax(-1)
        rows = [inputs.word_ids().index(i) for i in range(len(example.tokens))]
        plain = predictor._tagger.task.decode(scores[rows].numpy())
        agreeing += sum(left == right for left, right in zip(plain, prediction.tags, strict=True))
        total += len(plain)
    assert agreeing == total


def test_the_model_card(finished):
    card = (finished.folder / "run" / "model" / "README.md").read_text()
    for expected in (
        "license: cc-by-4.0",
        "HKCanCor",
        "- test: FC-R011_v",
        "| joint f1 |",
        "name: cantonese-pos",
    ):
        assert expected in card


def test_evaluate_gives_the_scores_of_the_run(finished):
    folder = finished.folder / "run"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    expected = next(r for r in records if r.get("part") == "test-best")
    scores = fangyan.load(folder).evaluate()
    assert scores == {name: pytest.approx(expected[name]) for name in scores}
    path = str(corpus_folder() / "FC-R011_v.cha")
    assert fangyan.load(folder).evaluate([path]) == scores
    out, _ = finished("evaluate", str(folder), "--data", path)
    assert f"{scores['joint_f1']:.2f}" in out


def test_predict_streams_and_keeps_order(finished, tmp_path):
    texts = [f"我哋有{i}個" for i in range(300)]
    (tmp_path / "in.txt").write_text("\n".join([*texts, "", "多謝"]) + "\n")
    out, _ = finished("predict", str(finished.folder / "run"), "--input", str(tmp_path / "in.txt"))
    lines = out.splitlines()
    joined = ["".join(word.rpartition("/")[0] for word in line.split()) for line in lines]
    assert joined == [*texts, "", "多謝"]
    out, _ = finished("predict", str(finished.folder / "run"), "食飯", "--json")
    assert json.loads(out)["tokens"] == ["食", "飯"]
    from_model = fangyan.load(finished.folder / "run" / "model").predict(["食飯"])
    assert list(from_model[0].tags) == json.loads(out)["tags"]


def test_a_long_text_is_tagged_whole(finished):
    text = "我哋今日去飲茶," * 200
    (prediction,) = fangyan.load(finished.folder / "run").predict([text])
    assert "".join(prediction.tokens) == text
    assert len(prediction.tags) == len(text)
    assert "".join(word for word, _ in prediction.words) == text


def test_early_stopping_and_the_best_checkpoint(cli):
    """At such a rate the first epoch is the best: the run stops after it and exports it."""
    out, _ = cli.train(
        "optimizer.lr=0.02", "train.epochs=9", "train.early_stopping=1", "train.checkpoint_every=null"
    )
    epochs = [line for line in out.splitlines() if line.startswith("epoch")]
    assert 2 <= len(epochs) < 9
    state = json.loads((cli.folder / "run/checkpoints/last/state.json").read_text())["state"]
    assert state["finished"]
    assert state["best_step"] < state["step"]
    best = (cli.folder / "run/checkpoints/best").resolve().name
    assert best == f"step-{state['best_step']:06d}"
    records = [json.loads(line) for line in (cli.folder / "run/metrics.jsonl").read_text().splitlines()]
    exported = next(r for r in records if r.get("part") == "dev-best")
    assert exported["joint_f1"] == pytest.approx(state["best_score"])
    assert fangyan.load(cli.folder / "run").evaluate()["joint_f1"] == pytest.approx(state["best_score"])


def test_frozen_parameters_stay(cli):
    cli.train("freeze.embeddings=true", "freeze.layers=0-3", "train.epochs=1", "optimizer.name=sgd")
    trained = load_file(cli.folder / "run/model/model.safetensors")
    original = fangyan.models.electra_gguf.read_electra(fangyan.models.electra_gguf.find_file())[2]
    same = {name for name in original if torch.equal(original[name], trained[name])}
    assert {name for name in original if "word_embeddings" in name or ".layer.3." in name} <= same
    assert not {name for name in original if ".layer.5." in name and "weight" in name} & same


def test_an_earlier_run_is_kept(cli):
    cli.train("train.epochs=1")
    (cli.folder / "run" / "mine.txt").write_text("x")
    out, _ = cli.train("train.epochs=1")
    assert "the earlier run is kept as" in out
    assert (cli.folder / "run.1" / "mine.txt").exists()
    assert not (cli.folder / "run" / "mine.txt").exists()


@pytest.mark.parametrize("layout", ["true", "false"])
def test_entities_from_the_users_own_files(cli, layout):
    """CoNLL in, padded or packed, with fractions held out: entity F1 out."""
    sentences = [
        [("我", "O"), ("喺", "O"), (place, "B-LOC"), (suffix, "I-LOC"), ("住", "O")]
        for place in "港九深廣佛中東西"
        for suffix in "村城島市角"
    ]
    text = "\n".join("".join(f"{token}\t{tag}\n" for token, tag in sentence) for sentence in sentences)
    (cli.folder / "places.conll").write_text(text)
    out, _ = cli.train(
        "data.format=conll",
        "data.train=places.conll",
        "data.dev=0.2",
        f"train.packing={layout}",
        "train.epochs=8",
        "optimizer.lr=2e-3",
    )
    assert "entity f1" in out
    (prediction,) = fangyan.load(cli.folder / "run").predict(["我 喺 港 村 住"])
    assert prediction.tags == ("O", "O", "B-LOC", "I-LOC", "O")
