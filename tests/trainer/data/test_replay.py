"""Earlier data is as large a part of an epoch as it should be; a mistake in it is one sentence."""

import json

import numpy as np
import pytest
from fangyan.data.replay import Replay
from fangyan.data.retained import load_retained, parse_retained
from fangyan.errors import UserError
from fangyan.recipe import parse_recipe
from fangyan.training.loaded_data import load_data
from hypothesis import given
from hypothesis import strategies as st

TEXT = {"name": "replay", "task": {"name": "causal_lm"}, "model": {"path": "smollm2-135m"}}


@given(st.floats(0.01, 0.95), st.lists(st.integers(1, 500), min_size=2, max_size=40), st.data())
def test_repeats_make_the_share_true(share, lengths, data):
    lengths = np.array(lengths)
    is_replayed = np.zeros(len(lengths), dtype=bool)
    is_replayed[data.draw(st.integers(1, len(lengths) - 1)) :] = True
    own = np.array(
        data.draw(st.lists(st.floats(0.5, 3.0), min_size=len(lengths), max_size=len(lengths))),
        dtype=np.float32,
    )
    repeats = Replay(share=share, source="self").repeats(own, lengths, is_replayed)
    seen = (repeats * lengths).astype(np.float64)
    assert seen[is_replayed].sum() / seen.sum() == pytest.approx(share, rel=1e-4)
    assert (repeats[~is_replayed] == own[~is_replayed]).all()


def test_repeats_of_nothing():
    with pytest.raises(UserError, match="data.replay.source: none of its train makes a sequence"):
        Replay(share=0.1, source="self").repeats(np.ones(2, np.float32), np.ones(2), np.zeros(2, bool))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"replay": {"share": 0.1}}}, "share is 0.1, and source is missing; expected data, or self"),
        (
            {"data": {"replay": {"share": 1.0, "source": "self"}}},
            "data.replay.share: .* less than or equal to 0.99",
        ),
        (
            {"data": {"replay": {"share": 0.1, "source": {"format": "text"}}}},
            "data.replay.source: data: train is missing",
        ),
        (
            {"data": {"replay": {"share": 0.1, "source": {"format": "conll", "train": "a"}}}},
            "data.replay.source.format is conll, which has no text; expected hkcancor",
        ),
        (
            {
                "data": {"replay": {"share": 0.1, "source": "self"}},
                "model": {"path": "smollm2-135m", "pretrained": False},
            },
            "data.replay.source is self, but model.pretrained is false",
        ),
        (
            {
                "data": {"replay": {"share": 0.1, "source": "self"}},
                "task": {"name": "masked_lm"},
            },
            "data.replay.source is self, which is for models that write raw text, found masked_lm",
        ),
        (
            {"retain": [{"format": "text", "train": "a", "name": "x/y"}]},
            "name is 'x/y', expected text without",
        ),
        (
            {"retain": [{"format": "text", "train": "a", "name": "x"}] * 2},
            "retain: x is there twice, expected names that differ",
        ),
        (
            {"retain": [{"name": "x", "sources": [{"format": "text", "train": "a"}]}]},
            "retain: x is of sources, expected a format of files, and each data set by itself",
        ),
        (
            {"retain": [{"format": "conll", "train": "a"}]},
            "retain: data-1.format is conll, which has no text",
        ),
        (
            {"retain": [{"format": "text", "train": "a", "replay": {"share": 0.1, "source": "self"}}]},
            "retain: data-1: replay is given, expected it in data alone",
        ),
        (
            {"objective": {"name": "ewc", "data": {"format": "conll", "train": "a"}}},
            "objective.data.format is conll, which has no text",
        ),
        ({"objective": {"name": "ewc"}}, "objective.data: missing; this field is required"),
    ],
)
def test_mistakes_are_one_sentence(sections, message):
    data = {"format": "text", "train": "a.txt", **sections.get("data", {})}
    with pytest.raises(UserError, match=message):
        parse_recipe({**TEXT, **sections, "data": data})


PAIRS = {"format": "jsonl", "columns": {"text": "a", "pair": "b", "label": "c"}}
CHARACTERS = {"format": "conll", "tokens": "characters"}


@pytest.mark.parametrize(
    ("task", "own", "other", "message"),
    [
        ("sequence_classification", {"format": "jsonl"}, PAIRS, "has pairs of texts, but data one text"),
        ("sequence_classification", PAIRS, {"format": "jsonl"}, "has one text, but data pairs of texts"),
        (
            "token_classification",
            {"format": "conll"},
            CHARACTERS,
            "tokens is characters, but data.tokens words",
        ),
    ],
)
@pytest.mark.parametrize("place", ["data.replay.source", "retain: old", "objective.data"])
def test_other_data_is_read_as_the_runs(task, own, other, message, place):
    sections = {"name": "read", "task": {"name": task}, "data": {"train": "a", **own}}
    other = {"train": "b", **other}
    if place == "data.replay.source":
        sections["data"]["replay"] = {"share": 0.1, "source": other}
    elif place == "objective.data":
        sections["objective"] = {"name": "ewc", "data": other}
    else:
        sections["retain"] = [{"name": "old", **other}]
    with pytest.raises(UserError, match=f"{place}.{message}"):
        parse_recipe(sections)


SINGLE, SEVERAL, NUMBERS = ["a", "b"] * 20, [["a"], []] * 20, [0.5, 1.5] * 20


@pytest.mark.parametrize(
    ("own", "replayed", "kinds"),
    [
        (SINGLE, SEVERAL, "multi label classification, without single label classification"),
        (["1", "2"] * 20, NUMBERS, "regression, without single label classification"),
        (SINGLE, ["c"] * 40, None),
        (["a"] * 40, ["b"] * 40, None),
    ],
)
def test_replayed_labels_do_not_change_what_the_task_is(tmp_path, own, replayed, kinds):
    for name, labels in (("own", own), ("replayed", replayed)):
        lines = [json.dumps({"text": f"{name} {i}", "label": label}) for i, label in enumerate(labels)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    source = {"format": "jsonl", "train": str(tmp_path / "replayed.jsonl")}
    data = {"format": "jsonl", "train": str(tmp_path / "own.jsonl"), "cache_dir": str(tmp_path)}
    recipe = parse_recipe(
        {
            "name": "kinds",
            "task": {"name": "sequence_classification"},
            "data": {**data, "replay": {"share": 0.1, "source": source}},
        }
    )
    if kinds is None:
        assert set(load_data(recipe).task.labels) == {*own, *replayed}
    else:
        with pytest.raises(
            UserError, match=f"data.replay.source: with its labels, those of train are {kinds}"
        ):
            load_data(recipe)


def test_replayed_tags_do_not_change_what_the_task_is(tmp_path):
    """A segmentation does not become entities."""
    words, entities = tmp_path / "words.conll", tmp_path / "entities.conll"
    words.write_text("".join(f"a{i} B-N\nb I-N\n\n" for i in range(20)), encoding="utf-8")
    entities.write_text("".join(f"c{i} B-PER\nd O\n\n" for i in range(20)), encoding="utf-8")
    source = {"format": "conll", "train": str(entities)}
    data = {"format": "conll", "train": str(words), "replay": {"share": 0.1, "source": source}}
    with pytest.raises(UserError, match="those of train are iob2 in IOB2, without segmentation in IOB2"):
        load_data(parse_recipe({"name": "tags", "data": data}))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("x", "classes that the model has not learned are scored as errors: x (5)"),
        (["a"], "label is ['a'], expected one class"),
    ],
)
def test_retained_labels_that_are_not_learned(tmp_path, label, message):
    for name, labels in (("own", ["a", "b"] * 20), ("old", [label] * 5)):
        lines = [json.dumps({"text": f"{name} {i}", "label": each}) for i, each in enumerate(labels)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    recipe = parse_recipe(
        {
            "name": "retained",
            "task": {"name": "sequence_classification"},
            "data": {"format": "jsonl", "train": str(tmp_path / "own.jsonl")},
            "retain": [{"name": "old", "format": "jsonl", "train": str(tmp_path / "old.jsonl")}],
        }
    )
    try:
        found = "; ".join(map(str, load_data(recipe).findings))
    except UserError as error:
        found = str(error)
    assert "retain: old: " in found
    assert message in found


def test_other_data_gets_the_columns_that_the_task_needs():
    recipe = parse_recipe(
        {
            "name": "columns",
            "task": {"name": "sequence_classification"},
            "data": {
                "format": "jsonl",
                "train": "a",
                "replay": {"share": 0.1, "source": {"format": "csv", "train": "b"}},
            },
            "retain": [{"format": "jsonl", "train": "c"}],
        }
    )
    assert set(recipe.data.replay.data().provided) == {"text", "label"}
    assert {"text", "label"} <= set(parse_retained(recipe.retain)["data-1"].provided)


def test_retained_is_the_test_split_or_all_of_train(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"line {i}\n" for i in range(20)), encoding="utf-8")
    (tmp_path / "b.txt").write_text("other\n", encoding="utf-8")
    a, b = str(tmp_path / "a.txt"), str(tmp_path / "b.txt")
    found = load_retained(
        [
            {"name": "all", "format": "text", "train": a},
            {"name": "files", "format": "text", "train": a, "test": b},
            {"name": "part", "format": "text", "train": a, "test": 0.25},
            {"name": "short", "format": "text", "train": b, "test": a},  # no dev split could come of it
        ],
        seed=0,
    )
    assert {name: len(examples) for name, examples in found.items()} == {
        "all": 20,
        "files": 1,
        "part": 5,
        "short": 20,
    }
    with pytest.raises(UserError, match=r"retain: gone: .*gone.txt: no such file"):
        load_retained([{"name": "gone", "format": "text", "train": str(tmp_path / "gone.txt")}], seed=0)
