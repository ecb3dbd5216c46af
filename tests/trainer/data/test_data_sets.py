"""Several data sets: their splits together, how often each is seen, scores of each, and what is refused."""

import json

import numpy as np
import pytest
from fangyan.data import store
from fangyan.data.batching import shuffled_batches
from fangyan.data.example import Example
from fangyan.data.formats import parse_data
from fangyan.data.splits import by_data_set, with_prefix
from fangyan.errors import UserError
from fangyan.inference.load import evaluate, export, load
from fangyan.recipe import Recipe, parse_recipe
from fangyan.tasks.token_classification.predictor import Tagged
from fangyan.training.train import train
from fangyan.training.workload import Workload


def write(folder, name, count, tag="x"):
    words = [f"{name}{i}" for i in range(count)]
    lines = [json.dumps({"tokens": [word, "ab"], "tags": [tag, "y"]}) for word in words]
    (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return {"name": name, "format": "jsonl", "train": str(folder / f"{name}.jsonl"), "dev": 0.25}


def sources(folder, **fields):
    members = [write(folder, "a", 40), write(folder, "b", 8, "z")]
    if "b" in fields.get("zero_shot", ()):
        del members[1]["dev"]
    return parse_data({"format": "sources", "sources": members, **fields}, "test")


def test_splits_are_those_of_each_together(tmp_path):
    data = sources(tmp_path)
    splits = data.load(0)
    assert {name: len(examples) for name, examples in splits.items()} == {"train": 36, "dev": 12}
    alone = data.members()["b"].load(0)
    for split, examples in splits.items():
        found = by_data_set(examples)
        assert list(found) == ["a", "b"]
        assert [dict(e.fields) for e in found["b"]] == [{**e.fields, "dataset": "b"} for e in alone[split]]
    assert data.provided == ("tokens", "tags")
    assert data.repeats(splits["train"]) is None
    assert by_data_set(alone["dev"]) == {}


def test_data_sets_of_zero_shot_are_tested_alone(tmp_path):
    data = sources(tmp_path, zero_shot=["b"])
    splits = data.load(0)
    assert {name: list(by_data_set(examples)) for name, examples in splits.items()} == {
        "train": ["a"],
        "dev": ["a"],
        "test": ["b"],
    }
    assert len(splits["test"]) == 8
    (tmp_path / "b.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(
        UserError, match="data.sources: b: data.train: no example in .*b.jsonl, expected at le"
    ):
        data.load(0)


def test_folds_are_of_each_data_set_that_is_trained_on(tmp_path):
    tested = []
    for number in (1, 2, 3, 4):
        splits = sources(tmp_path, fold=f"{number}/4").load(0)
        found = by_data_set(splits["test"])
        assert {name: len(examples) for name, examples in found.items()} == {"a": 10, "b": 2}
        tested += [example.fields["tokens"] for example in splits["test"]]
    assert len(set(tested)) == 48


def test_without_test_no_file_of_it_is_read(tmp_path):
    members = [write(tmp_path, "a", 8) | {"test": "missing.jsonl"}, write(tmp_path, "b", 8)]
    del members[1]["dev"]
    data = parse_data({"format": "sources", "sources": members, "zero_shot": ["b"]}, "test")
    splits = data.without_test().load(0)
    assert splits.keys() == {"train", "dev"}
    assert set(by_data_set(splits["train"])) == {"a"}


def test_data_sets_of_a_file_stay_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "IN_MEMORY", 1)
    data = sources(tmp_path, cache_dir=str(tmp_path / "cache"))
    assert {member.cache_dir for member in data.members().values()} == {str(tmp_path / "cache")}
    train = data.load(0)["train"]
    assert isinstance(train, store.ExampleFile)
    found = by_data_set(train)
    assert all(isinstance(examples, store.Subset) for examples in found.values())
    assert [example.fields["dataset"] for example in found["b"]] == ["b"] * 6


@pytest.mark.parametrize(("temperature", "shares"), [(2.0, (30**0.5, 6**0.5)), (100.0, (30**0.01, 6**0.01))])
def test_examples_are_seen_by_the_root_of_their_number(tmp_path, temperature, shares):
    data = sources(tmp_path, temperature=temperature)
    repeats = data.repeats(data.load(0)["train"])
    seen = repeats["a"] * 30, repeats["b"] * 6
    assert sum(seen) == pytest.approx(36)  # an epoch is as long as ever
    assert seen[0] / seen[1] == pytest.approx(shares[0] / shares[1])


def test_epochs_draw_as_often_as_they_are_told():
    lengths = np.full(1000, 3)
    repeats = np.where(np.arange(1000) < 900, 0.5, 5.5).astype(np.float32)
    counts = np.zeros(1000)
    for epoch in range(20):
        batches = shuffled_batches(lengths, 30, 7, epoch, repeats)
        drawn = np.concatenate([batches[i] for i in range(len(batches))])
        assert list(drawn) == list(
            np.concatenate([list(batch) for batch in shuffled_batches(lengths, 30, 7, epoch, repeats)])
        )
        counts += np.bincount(drawn, minlength=1000)
    assert counts[:900].mean() / 20 == pytest.approx(0.5, abs=0.02)
    assert counts[900:].mean() / 20 == pytest.approx(5.5, abs=0.05)
    assert set(np.unique(counts[900:] / 20 // 1)) == {5.0}
    once = shuffled_batches(lengths, 30, 7, 0)
    assert sorted(i for batch in once for i in batch) == list(range(1000))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {
                "sources": [{"name": name, "format": "text", "train": "x", "test": "y"} for name in "ab"],
                "zero_shot": ["a"],
            },
            "sources: a has test, expected train alone of a zero_shot data set",
        ),
        (
            {
                "sources": [
                    {
                        "name": name,
                        "format": "csv",
                        "train": "x",
                        "columns": {"text": "t", "label": "l", **pair},
                    }
                    for name, pair in (("a", {}), ("b", {"pair": "p"}))
                ]
            },
            "data: sources differ in pair, expected one text in all of them, or two",
        ),
        ({"dev": 0.2}, "data: dev is given beside sources, expected it in each of them"),
        ({"zero_shot": ["c"]}, "data: zero_shot has 'c', expected some of a, b"),
        ({"zero_shot": ["a", "b"]}, "data: zero_shot has all data sets, expected one to train on"),
        ({"temperature": 0.5}, "data.temperature: input should be greater than or equal to 1"),
        ({"sources": []}, "data.sources: list should have at least 1 item"),
        ({"sources": [{"format": "x"}]}, "sources: source-1: data.format: found 'x', expected one of"),
        ({"sources": [{"format": "sources", "sources": []}]}, "sources: source-1 is of sources itself"),
        (
            {"sources": [{"name": "a/b", "format": "text", "train": "x"}]},
            "name is 'a/b', expected text without",
        ),
        (
            {"sources": [{"name": n, "format": "text", "train": "x"} for n in "aa"]},
            "sources: a is there twice, expected names that differ",
        ),
    ],
)
def test_sources_with_a_mistake(tmp_path, change, message):
    with pytest.raises(UserError) as error:
        sources(tmp_path, **change)
    assert message in str(error.value)


def test_a_mistake_in_a_file_names_its_data_set(tmp_path):
    data = sources(tmp_path)
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(UserError, match=r"data.sources: b: .*b.jsonl: no such file"):
        data.load(0)


def recipe(folder, **fields):
    members = [write(folder, "a", 40), write(folder, "b", 8, "z")]
    content = {
        "name": "both",
        "run_dir": str(folder / "run"),
        "data": {"sources": members, **fields},
        "model": {"path": "scratch", "size": "tiny"},
        "optimizer": {"lr": 1e-2},
        "train": {"epochs": 2, "batch_tokens": 64, "log_every": 1},
    }
    return parse_recipe(content)


def test_recipe_needs_no_format_for_sources(tmp_path):
    found = recipe(tmp_path)
    assert found.data.format == "sources"
    (tmp_path / "again.yaml").write_text(found.to_yaml(), encoding="utf-8")
    from fangyan.recipe import load_recipe

    assert load_recipe(tmp_path / "again.yaml") == found
    # Columns of each are what the task needs.
    text = {"format": "jsonl", "train": "x.jsonl"}
    content = {"name": "x", "task": {"name": "causal_lm"}, "data": {"sources": [text, {**text, "name": "y"}]}}
    assert parse_recipe(content).data.members()["y"].columns == {"text": "text"}
    assert isinstance(found, Recipe)


def test_prefixes_are_names_before_what_is_read(tmp_path):
    data = sources(tmp_path, prefix=True, zero_shot=["b"])
    assert data.prefixes == ("a",)
    splits = data.load(0)
    assert {example.fields.get("prefix") for example in splits["train"]} == {"a"}
    assert {example.fields.get("prefix") for example in splits["test"]} == {None}
    told = with_prefix(Example({"text": "x", "pair": "y", "label": "z"}, "", ""), "a")
    assert told.fields == {"text": "a: x", "pair": "y", "label": "z"}
    answers = ({"text": "x", "start": 0},)
    told = with_prefix(Example({"question": "q", "context": "x", "answers": answers}, "", ""), "a")
    assert told.fields == {"question": "a: q", "context": "x", "answers": answers}
    texts = {"sources": [{"format": "text", "train": "x"}], "prefix": True}
    with pytest.raises(
        UserError, match="data.prefix is for tasks with tags, labels or answers, found masked"
    ):
        parse_recipe({"name": "x", "task": {"name": "masked_lm"}, "data": texts})


def test_files_are_of_one_data_set(tmp_path):
    data = sources(tmp_path, prefix=True)
    path = tmp_path / "b.jsonl"
    (first, *_) = data.of_source("b").read_files([str(path)])
    assert (first.fields["dataset"], first.fields["prefix"]) == ("b", "b")
    for name, message in (
        (None, "--source is missing, expected one of a, b"),
        ("c", "--source: found 'c', exp"),
    ):
        with pytest.raises(UserError, match=message):
            data.of_source(name)
    alone = data.members()["a"]
    assert alone.of_source(None) is alone
    with pytest.raises(UserError, match="--source: found 'a', but the run has one data set alone"):
        alone.of_source("a")


def prefixed(folder, name, model):
    members = [write(folder, "a", 8, "z"), write(folder, "b", 8, "z") | {"name": name}]
    return {"name": "x", "data": {"sources": members, "prefix": True}, "model": {"path": model}}


@pytest.mark.slow
def test_a_run_has_scores_of_each_data_set(tmp_path, capfd):
    result = train(recipe(tmp_path, temperature=2.0, prefix=True))
    assert set(result.after) == {"dev", "dev/a", "dev/b"}
    out, _ = capfd.readouterr()
    assert "dev/b after" in out
    counts = {"dev/a": 10, "dev/b": 2}  # of sentences, two words each
    mean = sum(result.after[name]["token_accuracy"] * count for name, count in counts.items()) / 12
    assert result.after["dev"]["token_accuracy"] == pytest.approx(mean)
    run = tmp_path / "run"
    assert "a, train: " in (run / "model/README.md").read_text(encoding="utf-8")
    for name in ("a", "b"):
        found = evaluate(run, [str(tmp_path / f"{name}.jsonl")], source=name)
        assert found.keys() == {"token_accuracy"}
    with pytest.raises(UserError, match=r"--source is missing, expected what the texts are of: a, b, or -"):
        load(run)
    for name in ("a", "b"):
        found = evaluate(run, source=name)  # on dev, as there is no test
        assert found["token_accuracy"] == pytest.approx(result.after[f"dev/{name}"]["token_accuracy"])
    for action in (lambda: evaluate(run, source="c"), lambda: load(run, "c")):
        with pytest.raises(UserError, match=r"--source: found 'c', expected one of a, b"):
            action()
    told, other = load(run, "b"), load(run, "-")
    assert (told.prefix, other.prefix) == ("b", None)
    (text,) = told.predict(["b7 ab"])
    assert text.tokens == ("b7", "ab")
    seen = []
    told._tag = lambda examples, _: seen.extend(examples) or [Tagged(("x", "y"), None) for _ in examples]
    told.predict(["b7 ab"])
    list(told.annotate([Example({"tokens": ("b7", "ab")}, "", "")]))
    assert [example.fields["prefix"] for example in seen] == ["b", "b"]
    with pytest.raises(UserError, match=r"data.prefix: the name city is unknown to the tokenizer"):
        Workload(Recipe.model_validate(prefixed(tmp_path, "city", "cantonese-electra")))
    with pytest.raises(UserError, match=r"data.prefix: a and A are one to the tokenizer, expected others"):
        Workload(Recipe.model_validate(prefixed(tmp_path, "A", "cantonese-electra")))
    Workload(Recipe.model_validate(prefixed(tmp_path, "city", "scratch")))
    export(run, tmp_path / "model")
    assert load(tmp_path / "model", "b").prefix == "b"
