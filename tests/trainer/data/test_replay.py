"""Earlier data is as large a part of an epoch as it should be; a mistake in it is one sentence."""

import numpy as np
import pytest
from fangyan.data.replay import Replay
from fangyan.data.retained import load_retained, parse_retained
from fangyan.errors import UserError
from fangyan.recipe import parse_recipe
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
        ({"data": {"replay": {"share": 1.0, "source": "self"}}}, "data.replay.share: .* less than 1"),
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
        ],
        seed=0,
    )
    assert {name: len(examples) for name, examples in found.items()} == {"all": 20, "files": 1, "part": 5}
    with pytest.raises(UserError, match=r"retain: gone: .*gone.txt: no such file"):
        load_retained([{"name": "gone", "format": "text", "train": str(tmp_path / "gone.txt")}], seed=0)
