"""Self-training: what is labelled confidently, the rounds, and what an interruption leaves."""

import json
import random
import shutil

import numpy as np
import pytest
import yaml
from fangyan.data.example import Annotation, Example
from fangyan.errors import UserError
from fangyan.inference.load import load
from fangyan.recipe import parse_recipe
from fangyan.tasks.predictor import Scored
from fangyan.training import self_training
from fangyan.training.self_training import SETTINGS, confident
from fangyan.training.staged_recipe import parse_stages
from fangyan.training.train import train
from hypothesis import given
from hypothesis import strategies as st
from model_families import BY_NAME, save
from tiny_exports import classifier


def scored(*rows):
    """An example whose units have the probability of their class that is given, of two classes."""
    logs = np.log(np.array([[p, 1 - p] if c == 0 else [1 - p, p] for c, p in rows], dtype=np.float32))
    return Scored(logs, np.array([c for c, _ in rows], dtype=np.int64))


def test_confident_by_the_geometric_mean():
    examples = [scored((0, 0.9), (0, 0.9)), scored((0, 0.99), (1, 0.6)), scored((1, 0.81)), scored()]
    assert confident(examples[:3], 0.8, balance=False) == [0, 2]
    assert confident(examples[:3], 0.75, balance=False) == [0, 1, 2]
    assert confident([], 0.5, balance=True) == []


def test_confident_of_what_is_predicted_and_not_of_what_is_likeliest():
    (example,) = decoded = [scored((0, 0.9), (1, 0.1))]  # as where the likeliest tag breaks a rule
    assert example.log_probabilities_UC[1].argmax() != example.classes_U[1]
    assert confident(decoded, 0.35, balance=False) == []
    assert confident(decoded, 0.25, balance=False) == [0]


@given(
    st.lists(st.tuples(st.integers(0, 1), st.floats(0.51, 0.999)), min_size=1, max_size=30), st.floats(0.3, 1)
)
def test_balance_lowers_the_threshold_of_the_class_that_is_known_less(rows, threshold):
    examples = [scored(row) for row in rows]
    found = confident(examples, threshold, balance=True)
    assert set(confident(examples, threshold, balance=False)) <= set(found)
    mean = {c: np.mean([p for each, p in rows if each == c]) for c in {c for c, _ in rows}}
    best = max(mean.values())
    for i, (c, p) in enumerate(rows):
        needed = threshold * mean[c] / best
        if abs(p - needed) > 1e-4:
            assert (i in found) == (p > needed)


def test_lines_keep_the_spaces_of_tokens():
    fields = {"tokens": ("I", "'m"), "spaces": (False, True)}
    line = self_training._line(Example(fields, "", ""), Annotation(("O", "O")))
    assert json.loads(line) == {"tokens": ["I", "'m"], "spaces": [False, True], "tags": ["O", "O"]}


@pytest.fixture
def content(tmp_path):
    """Texts whose class follows from their first word, few of them labelled."""
    save(BY_NAME["BERT"], tmp_path / "base", num_labels=2, hidden_dropout_prob=0.1)
    draw = random.Random(0)
    records = []
    for _ in range(260):
        words = [f"w{draw.randint(10, 59)}" for _ in range(draw.randint(3, 10))]
        records.append({"text": " ".join(words), "label": "low" if int(words[0][1:]) < 35 else "high"})
    files = {"train": records[:60], "dev": records[60:100], "pool": records[100:]}
    for name, chosen in files.items():
        lines = [json.dumps(record) for record in chosen]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    # Of the pool, some are texts alone, and some are labelled elsewhere: their labels are not read.
    raw = [record["text"] for record in [*records[55:65], *records[240:]]]
    (tmp_path / "raw.txt").write_text("\n".join(raw), encoding="utf-8")
    return {
        "name": "alone",
        "run_dir": str(tmp_path / "run"),
        "task": {"name": "sequence_classification"},
        "data": {
            "format": "jsonl",
            "train": str(tmp_path / "train.jsonl"),
            "dev": str(tmp_path / "dev.jsonl"),
            "unlabelled": [str(tmp_path / "pool.jsonl"), str(tmp_path / "raw.txt")],
            "cache_dir": str(tmp_path / "cache"),
        },
        "model": {"path": str(tmp_path / "base")},
        "optimizer": {"lr": 1e-2},
        "train": {"epochs": 4, "batch_tokens": 256, "log_every": 1, "checkpoint_every": 2},
        "self_training": {"rounds": 2, "threshold": 0.52},
    }


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [(r["step"], r["loss"]) for r in map(json.loads, lines) if r["kind"] == "train"]


@pytest.mark.slow
def test_rounds_learn_from_what_is_labelled_and_go_on_where_they_were(content, cli, tmp_path):
    (cli.folder / "r.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    out, err = cli("train", "r.yaml")
    run = tmp_path / "run"
    labelled = [json.loads(line) for line in (run / "round-1.jsonl").read_text(encoding="utf-8").splitlines()]
    # What is in train or dev is not labelled again.
    assert f"labelled labels {len(labelled):,} of 160 texts confidently" in err
    assert 20 < len(labelled) <= 160
    assert all(set(record) == {"text", "label"} for record in labelled)
    second = yaml.safe_load((run / "round-2/recipe.yaml").read_text(encoding="utf-8"))
    assert second["data"]["replay"]["source"]["train"] == str(run / "round-2.jsonl")
    assert second["data"]["unlabelled"] is None
    assert "best on dev" in out
    whole = losses(run / "round-2")
    # Interrupted in the second round, it goes on exactly; the first two runs are kept.
    shutil.rmtree((run / "round-2/checkpoints/last").resolve())
    shutil.rmtree(run / "round-2/model")
    out, err = cli("train", "r.yaml")
    assert "alone-round-1 is finished, and kept" in err
    assert losses(run / "round-2") == whole


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["words", "characters"])
def test_taggers_of_either_unit_learn_from_what_is_labelled(unit, electra, tmp_path):
    subject, raw = {"words": ("我哋", "佢 飲 茶"), "characters": ("我", "佢飲茶")}[unit]
    lines = [f"{subject}\tr\n{verb}\tv\n飯\tn\n\n" for verb in "食煮買賣冇有要睇畀留"]
    (tmp_path / "few.conll").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "raw.txt").write_text(f"{raw}\n", encoding="utf-8")
    data = {"format": "conll", "tokens": unit, "train": str(tmp_path / "few.conll"), "dev": 0.2}
    result = train(
        parse_recipe(
            {
                "name": "either",
                "run_dir": str(tmp_path / "run"),
                "data": {
                    **data,
                    "unlabelled": str(tmp_path / "raw.txt"),
                    "cache_dir": str(tmp_path / "cache"),
                },
                "model": {"path": str(electra)},
                "optimizer": {"lr": 1e-2},
                "train": {"epochs": 2, "batch_tokens": 32},
                "self_training": {"rounds": 1, "threshold": 0.05, "share": 0.2},
            }
        )
    )
    (line, *_) = map(json.loads, (tmp_path / "run/round-1.jsonl").read_text(encoding="utf-8").splitlines())
    assert line["tokens"] == ["佢", "飲", "茶"]
    second = yaml.safe_load((tmp_path / "run/round-1/recipe.yaml").read_text(encoding="utf-8"))
    assert second["data"]["replay"]["source"]["tokens"] == unit
    assert result.folder.parent == tmp_path / "run"


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("data", {"replay": {"share": 0.1, "source": {"format": "jsonl", "train": "a"}}}, "expected one"),
        ("data", {"unlabelled": "gone.txt"}, "data.unlabelled: gone.txt: no such file"),
        ("data", {"unlabelled": "gone*.txt"}, r"gone\*.txt: no file has such a name"),
        ("data", {"train": "{tmp_path}/several.jsonl", "dev": 0.5}, "is for taggers, and classifiers of one"),
        ("train", {"metric": "f9"}, "train.metric: 'f9' is no metric of this task"),
    ],
)
def test_mistakes_before_anything_is_trained(content, tmp_path, section, fields, message):
    lines = [json.dumps({"text": f"w{i}", "label": ["a", "b"]}) for i in range(10, 20)]
    (tmp_path / "several.jsonl").write_text("\n".join(lines), encoding="utf-8")
    fields = {
        name: value.format(tmp_path=tmp_path) if isinstance(value, str) else value
        for name, value in fields.items()
    }
    with pytest.raises(UserError, match=message):
        train(parse_recipe({**content, section: {**content[section], **fields}}))


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("data", {"unlabelled": "train.jsonl"}, r"rounds.yaml: the run has data.unlabelled=\["),
        ("self_training", {"threshold": 0.7}, "rounds.yaml: the run has self_training.threshold=0.52"),
    ],
)
def test_files_of_rounds_are_of_one_recipe(content, tmp_path, monkeypatch, section, fields, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / SETTINGS).write_text(parse_recipe(content).to_yaml(), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        train(parse_recipe({**content, section: {**content[section], **fields}}))


def test_where_no_text_is_labelled_a_lower_threshold_goes_on(content, tmp_path):
    """The first run does not depend on it, and no file is left that would be taken for a round's."""
    low, high = (
        parse_recipe({**content, "self_training": {"rounds": 1, "threshold": value}}) for value in (0.1, 1.0)
    )
    first = self_training._round(low, self_training.FIRST, None)
    assert first == self_training._round(high, self_training.FIRST, None)
    teacher = tmp_path / "run" / self_training.FIRST
    classifier(teacher / "model", ["high", "low"])
    (teacher / "recipe.yaml").write_text(first.to_yaml(), encoding="utf-8")
    file = tmp_path / "run" / "round-1.jsonl"
    assert not self_training._label(high, teacher, file)
    assert list(file.parent.iterdir()) == [teacher]
    assert self_training._label(low, teacher, file)
    assert (tmp_path / "run" / SETTINGS).read_text(encoding="utf-8") == low.to_yaml()
    labelled = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    predicted = load(teacher).predict(record["text"] for record in labelled)
    assert [record["label"] for record in labelled] == [each.label for each in predicted]


def test_unlabelled_that_is_all_labelled(content, tmp_path):
    data = {**content["data"], "unlabelled": [content["data"]["dev"], content["data"]["train"]]}
    recipe = parse_recipe({**content, "data": data})
    teacher = tmp_path / "run" / self_training.FIRST
    classifier(teacher / "model", ["high", "low"])
    (teacher / "recipe.yaml").write_text(
        self_training._round(recipe, self_training.FIRST, None).to_yaml(), encoding="utf-8"
    )
    with pytest.raises(UserError, match="the data has labels of all of its texts, expected others"):
        self_training._label(recipe, teacher, tmp_path / "run" / "round-1.jsonl")


def test_pairs_stay_pairs(content, tmp_path):
    data = {**content["data"], "columns": {"text": "a", "pair": "b", "label": "c"}}
    round_1 = self_training._round(parse_recipe({**content, "data": data}), "round-1", tmp_path / "1.jsonl")
    (tmp_path / "1.jsonl").write_text('{"text": "w1", "pair": "w2", "label": "x"}\n', encoding="utf-8")
    (example,) = round_1.data.replay.data().read(tmp_path / "1.jsonl")
    assert example.fields == {"text": "w1", "pair": "w2", "label": "x"}


def test_sections_that_make_no_rounds_refuse_unlabelled(content):
    data = content["data"]
    inner = {"format": "jsonl", "train": "a", "unlabelled": "b"}
    for changed in (
        {"data": {**data, "unlabelled": None, "replay": {"share": 0.1, "source": inner}}},
        {"data": {"sources": [{**inner, "name": "a"}, {"name": "b", "format": "jsonl", "train": "b"}]}},
        {"retain": [inner]},
    ):
        with pytest.raises(UserError, match="unlabelled is given, expected it in data alone"):
            parse_recipe({**content, **changed})
    stages = [{"name": "one"}, {"name": "two", "data": {**data, "unlabelled": None}}]
    with pytest.raises(UserError, match="stages: one: data.unlabelled makes several runs of a stage"):
        parse_stages({**{k: v for k, v in content.items() if k != "model"}, "stages": stages}, "x.yaml")


def test_other_commands_say_that_there_are_several_runs(content):
    with pytest.raises(UserError, match="data.unlabelled: makes several runs, which resume by themselves"):
        train(parse_recipe(content), profile=True)
    with pytest.raises(UserError, match="expected no --resume but auto"):
        train(parse_recipe(content), resume="some/folder")
