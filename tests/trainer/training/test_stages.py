"""Stages: what is refused, what each is trained on, and what a kill in the middle leaves."""

import json
import os
import signal
import time

import pytest
import yaml
from fangyan.errors import UserError
from fangyan.recipe import Recipe, load_recipe
from fangyan.training.staged_recipe import StagedRecipe, load_training, merge_sections, parse_stages
from model_families import BY_NAME, save
from transformers import AutoModelForMaskedLM

READ = {
    "name": "read",
    "task": {"name": "masked_lm"},
    "data": {"format": "text", "train": "text.txt", "dev": "text.txt"},
}
FIRST = {"name": "first", "data": {"train": "a.jsonl", "dev": "a.jsonl"}}
SECOND = {"name": "second", "data": {"train": "b.jsonl", "dev": "b.jsonl"}, "optimizer": {"lr": 5e-3}}
COMMON = {
    "name": "both",
    "task": {"labels": ["x", "y"]},
    "data": {"format": "jsonl", "train": "a.jsonl", "dev": "a.jsonl"},
    "model": {"path": "base", "hidden_dropout": 0.0},
    "optimizer": {"lr": 1e-2, "eps": 1e-4},
    "train": {"epochs": 2, "batch_tokens": 64, "log_every": 1, "checkpoint_every": 2},
}


def recipe(*stages, **changes):
    return {**COMMON, **changes, "stages": [READ, FIRST, SECOND] if not stages else list(stages)}


def test_each_stage_is_the_common_part_and_its_own():
    staged = parse_stages(recipe(), "r.yaml")
    assert list(staged.stages) == ["read", "first", "second"]
    read, first, second = staged.stages.values()
    assert (read.name, read.task.name, read.data.format) == ("both-read", "masked_lm", "text")
    assert (first.task.name, first.task.labels, first.data.format) == (
        "token_classification",
        ["x", "y"],
        "jsonl",
    )
    assert (first.optimizer.lr, second.optimizer.lr, second.optimizer.eps) == (1e-2, 5e-3, 1e-4)
    assert [stage.model.path for stage in (read, first, second)] == [
        "base",
        "runs/both/read/model",
        "runs/both/first/model",
    ]
    assert {stage.model.hidden_dropout for stage in (read, first, second)} == {0.0}
    adapted = parse_stages(recipe({**FIRST, "adaptation": {"name": "lora"}}, SECOND), "r.yaml").stages
    assert adapted["second"].model.path == "runs/both/first/merged"
    assert adapted["second"].adaptation.name == "full"


def test_sections_of_another_member_take_the_place():
    common = {"optimizer": {"name": "sgd", "momentum": 0.5}, "train": {"epochs": 2, "log_every": 5}}
    merged = merge_sections(common, {"optimizer": {"name": "adamw"}, "train": {"epochs": 3}})
    assert merged == {"optimizer": {"name": "adamw"}, "train": {"epochs": 3, "log_every": 5}}
    assert merge_sections(common, {"optimizer": {"lr": 1.0}})["optimizer"] == {
        **common["optimizer"],
        "lr": 1.0,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (recipe(FIRST), "'name': 'first'}], expected two partial recipes or more"),
        (recipe(FIRST, 5), "r.yaml: stages: stage 2 is 5, expected a partial recipe"),
        (recipe(FIRST, FIRST), "r.yaml: stages: first is there twice, expected names that differ"),
        (recipe(FIRST, {**SECOND, "name": "a/b"}), "r.yaml: stages: name is 'a/b', expected a short name"),
        (
            recipe(FIRST, {**SECOND, "seed": 1}),
            "r.yaml: stages: second: seed is given, expected it for the stages",
        ),
        (
            recipe(FIRST, {**SECOND, "model": {"path": "x"}}),
            "stages: second: model is {'path': 'x'}, expected neither",
        ),
        (recipe(FIRST, {**SECOND, "trian": {}}), "r.yaml: stages: second: trian: unknown key"),
        (
            recipe(FIRST, {**SECOND, "optimizer": {"lr": -1}}),
            "r.yaml: stages: second: optimizer.lr: input should",
        ),
        (recipe(FIRST, SECOND, name=5), "r.yaml: name is 5, expected one for the stages together"),
        (
            recipe({**FIRST, "adaptation": {"name": "prompt_tuning"}, "train": {"packing": False}}, SECOND),
            "stages: second: the stage before is prompt_tuning, which cannot be merged",
        ),
    ],
)
def test_stages_with_a_mistake(content, message):
    with pytest.raises(UserError) as error:
        parse_stages(content, "r.yaml")
    assert message in str(error.value)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(BY_NAME["BERT"], tmp_path / "base", AutoModelForMaskedLM)
    words = [f"w{i}" for i in range(10, 22)]
    for name, tag in (("a", "x"), ("b", "y")):
        records = [{"tokens": words[i : i + 6], "tags": [tag, "x", "y"] * 2} for i in range(7)] * 3
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    (tmp_path / "text.txt").write_text("\n".join([" ".join(words)] * 20), encoding="utf-8")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe()), encoding="utf-8")
    return tmp_path


def test_only_train_takes_stages(folder):
    assert isinstance(load_training("r.yaml"), StagedRecipe)
    with pytest.raises(UserError, match="r.yaml: stages are for fangyan train, expected a recipe without"):
        load_recipe("r.yaml")
    (folder / "one.yaml").write_text(yaml.safe_dump(COMMON), encoding="utf-8")
    assert isinstance(load_training("one.yaml", ["train.epochs=1"]), Recipe)


def losses(folder, stage):
    lines = (folder / "runs/both" / stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record["loss"] for record in map(json.loads, lines) if record["kind"] == "train"]


@pytest.mark.slow
def test_stages_resume_in_the_middle_of_one(folder, cli_in, tmp_path_factory):
    """Killed in the second: the first is kept, the second goes on exactly, and all scores are there."""
    cli = cli_in(folder)
    cli("train", "r.yaml")
    whole = {stage: losses(folder, stage) for stage in ("read", "first", "second")}
    scores = json.loads((folder / "runs/both/stages.json").read_text(encoding="utf-8"))
    assert {stage: sorted(row) for stage, row in scores.items()} == {
        "read": ["read"],
        "first": ["first"],
        "second": ["first", "second"],
    }
    assert scores["first"]["first"] != scores["second"]["first"]
    (folder / "runs").rename(folder / "before")
    process = cli.start("train", "r.yaml", "train.checkpoint_every=1")
    metrics = folder / "runs/both/first/metrics.jsonl"
    while not (metrics.exists() and '"step": 3' in metrics.read_text(encoding="utf-8")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    for pid in process.pids:
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    _, err = cli("train", "r.yaml", "train.checkpoint_every=1")
    assert "both-read is finished, and kept" in err
    assert "resuming" in err
    assert {stage: losses(folder, stage) for stage in whole} == whole
    assert json.loads((folder / "runs/both/stages.json").read_text(encoding="utf-8")) == scores


@pytest.mark.slow
def test_stages_with_adapters_and_seeds(folder, cli_in):
    """Each seed has its own folders; an adapter is merged for the stage behind it."""
    cli = cli_in(folder)
    stages = [{**FIRST, "adaptation": {"name": "lora", "rank": 2}}, SECOND]
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe(*stages)), encoding="utf-8")
    out, _ = cli("train", "r.yaml", "train.epochs=1", "--seeds", "2")
    assert "both: mean ± standard deviation of 2 runs" in out
    summary = json.loads((folder / "runs/both/summary.json").read_text(encoding="utf-8"))
    assert list(summary["runs"]) == ["seed-0", "seed-1"]
    for seed in (0, 1):
        run = folder / f"runs/both/seed-{seed}"
        second = yaml.safe_load((run / "second/recipe.yaml").read_text(encoding="utf-8"))
        assert (second["seed"], second["model"]["path"]) == (seed, f"runs/both/seed-{seed}/first/merged")
        assert (run / "first/merged/model.safetensors").is_file()
        assert not (run / "second/merged").exists()
    _, err = cli("train", "r.yaml", "--folds", "2", code=2)
    assert "stages resume by themselves, expected no --resume but auto, and --seeds alone beside" in err
