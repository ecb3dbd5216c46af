"""Recipes: what may be said, and one sentence for what may not."""

import pytest
from fangyan.errors import UserError
from fangyan.recipe import Recipe, describe_fields, load_recipe, parse_layers

MINIMAL = "name: x\ndata: {format: hkcancor}\n"


def write(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return path


def test_defaults_and_overrides(tmp_path):
    path = write(tmp_path, MINIMAL)
    recipe = load_recipe(
        path, ["train.epochs=3", "optimizer.lr=1e-3", "data.dev=[a,b]", "model.pretrained=false"]
    )
    assert (recipe.train.epochs, recipe.optimizer.lr, recipe.model.pretrained) == (3, 1e-3, False)
    assert recipe.data.dev == ["a", "b"]
    assert str(recipe.folder) == "runs/x"


def test_a_written_recipe_reads_back(tmp_path):
    recipe = load_recipe(write(tmp_path, MINIMAL), ["optimizer.betas=[0.9,0.98]", "freeze.layers=0-3"])
    assert load_recipe(write(tmp_path, recipe.to_yaml())) == recipe


def test_the_shipped_recipes_are_valid():
    from pathlib import Path

    recipes = sorted((Path(__file__).parents[2] / "trainer" / "fangyan" / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        assert load_recipe(path).name == path.stem


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.epochs=3", "trian: unknown key; expected one of name, run_dir"),
        ("train.epoch=3", "train.epoch: unknown key; expected one of epochs, "),
        ("train.epochs=many", "train.epochs: input should be a valid integer, found 'many'"),
        ("train.epochs=0", "train.epochs: input should be greater than or equal to 1, found 0"),
        ("optimizer.lr=-1", "optimizer.lr: input should be greater than 0"),
        ("optimizer.lr=.nan", "optimizer.lr: input should be a finite number"),
        ("engine.zero_stage=4", "engine.zero_stage: input should be 0, 1, 2 or 3, found 4"),
        ("freeze.layers=3-1", "freeze.layers: layers is '3-1', its range 3-1 runs backwards"),
        ("freeze.layers=all", "freeze.layers: layers is 'all', expected numbers such as 3, 0-3 or 0,2,4"),
        ("data.format=conll", "data: train is missing; format conll needs the files to train on"),
        ("data.dev=1.5", "data.dev: "),
        ("name=a/b", "name: string should match pattern"),
        ("epochs", "override 'epochs': expected key.sub=value"),
    ],
)
def test_mistakes(tmp_path, override, message):
    with pytest.raises(UserError) as error:
        load_recipe(write(tmp_path, MINIMAL), [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\ndata: {format: hkcancor\n", r"r.yaml:3: not a YAML recipe"),
        ("- a\n", "expected a YAML mapping"),
        ("data: {format: hkcancor}\n", "name: missing; this field is required"),
        ("name: x\nname: y\ndata: {format: hkcancor}\n", "not a YAML recipe: found duplicate key name"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load_recipe(write(tmp_path, text))


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"none.yaml: no such recipe"):
        load_recipe(tmp_path / "none.yaml")


def test_layers():
    assert parse_layers(3) == [3]
    assert parse_layers("0-3") == [0, 1, 2, 3]
    assert parse_layers("0, 2,5-6") == [0, 2, 5, 6]


def test_every_field_is_described():
    rows = describe_fields()
    assert len(rows) > 30
    assert all(meaning for _, _, meaning in rows)
    assert ("seed", "0") in [row[:2] for row in rows]
    assert set(Recipe.model_fields) == {name.split(".")[0] for name, _, _ in rows}
