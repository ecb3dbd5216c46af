"""What a user may have meant: said at the end of the sentence about what is wrong."""

from pathlib import Path

import pytest
from fangyan.errors import UserError
from fangyan.recipe import load_recipe
from fangyan.suggestions import did_you_mean, file_like, run_like

DATA = ["data={format: conll, train: a.conll}"]


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("train.epoch=3", "train.epochs"),
        ("epochs=3", "train.epochs"),
        ("train.lr=3", "optimizer.lr"),
        ("train.batch_size=32", "train.batch_tokens"),
        ("optimzer.lr=3", "optimizer"),
        ("data.colums={}", "data.columns"),
        ("data.format=conlu", "conllu"),
        ("adaptation.name=lorra", "lora"),
        ("schedule.decay=linaer", "linear"),
        ("task.scheme=IOBES2", "iobes"),
        ("data.columns={tokn: 1, tag: 2}", "token"),
    ],
)
def test_a_recipe_names_the_nearest_field_or_value(override, meant):
    with pytest.raises(UserError) as error:
        load_recipe("cantonese-scratch", [*DATA, override])
    assert str(error.value).endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize("override", ["colour=red", "train.xyz=3", "schedule.decay=7", "data.format=[]"])
def test_nothing_is_suggested_where_nothing_is_near(override):
    with pytest.raises(UserError) as error:
        load_recipe("cantonese-scratch", [*DATA, override])
    assert "did you mean" not in str(error.value)


def test_a_recipe_that_there_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tagger.yaml").write_text("name: x\n", encoding="utf-8")
    for name, meant in (("cantonese-poss", "cantonese-pos"), ("tager.yaml", "tagger.yaml")):
        with pytest.raises(UserError, match=f"; did you mean {meant}\\?$"):
            load_recipe(name)


def test_a_conversation_and_a_tag_that_there_is_not():
    recipe = load_recipe("cantonese-scratch", ["data.dev=[FC-005b_v1]"])
    with pytest.raises(UserError, match=r"no conversation 'FC-005b_v1' in .*; did you mean FC-005b_v2\?$"):
        recipe.data.load(0)
    recipe = load_recipe("cantonese-scratch", ["task.class_weights={nn: 2.0}", "data.train=[FC-R005_v2]"])
    with pytest.raises(UserError, match=r"'nn' is not in the tag set of \d+, .*; did you mean n\?$"):
        recipe.task.build(recipe.data.load(0), recipe.data)


def test_names_are_compared_without_case_and_up_to_a_length():
    assert did_you_mean("Noun", ["NOUN", "VERB"]) == "; did you mean NOUN?"
    assert did_you_mean("x" * 100_000, ["x" * 100, "y"]) == "; did you mean " + "x" * 100 + "?"
    assert did_you_mean("NOUN", ["NOUN"]) == ""
    assert did_you_mean("", ["a"]) == ""


def test_files_and_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.conllu").touch()
    (tmp_path / "runs" / "my-tagger").mkdir(parents=True)
    assert file_like("data/trian.conllu") == "; did you mean data/train.conllu?"
    assert file_like(tmp_path / "data" / "train.conll") == f"; did you mean {tmp_path}/data/train.conllu?"
    assert file_like("nowhere/train.conllu") == ""
    for name in ("my-tagger", "my-tager", "runs/my-tager"):
        assert run_like(Path(name)) == "; did you mean runs/my-tagger?"
    assert run_like(Path("zzz")) == ""
