"""Recipes and overrides: they are read, and written as they are read, or refused in one sentence."""

import random

import pytest
from fangyan.recipe import RECIPES, describe_fields, load_recipe
from malformed import ODD_TEXT, ODD_YAML, mutate

FIELDS = sorted({field.name for field in describe_fields()})
BASES = [
    *(path.read_text(encoding="utf-8") for path in sorted(RECIPES.glob("*.yaml"))),
    "name: x\ndata: {format: hkcancor}\n",
    "name: x\ndata:\n  format: conll\n  train: a.conll\n  columns: {token: 1, tag: 2}\n",
    "name: x\ndata: {format: jsonl, train: [a.jsonl], dev: 0.1}\nadaptation: {name: lora, rank: 4}\n",
    "name: x\ntask: {name: causal_lm}\ndata: {format: text, train: a.txt}\nadaptation: {name: ia3}\n",
    "name: x\ndata: {format: csv, train: a.csv, columns: {text: s, spans: e}}\noptimizer: {name: sgd}\n",
]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "r.yaml"


def check(tried, file, overrides=()):
    recipe = tried(load_recipe, file, list(overrides))
    if recipe is not None:
        file.write_text(recipe.to_yaml(), encoding="utf-8")
        assert load_recipe(file) == recipe
        assert recipe.folder.name not in ("", ".", "..")


def with_field(draw, text):
    """A field that is odd, at the end of its section or of the recipe."""
    section, _, key = draw.choice(FIELDS).rpartition(".")
    value = draw.choice(ODD_YAML)
    if not section:
        lines = [line for line in text.splitlines() if not line.startswith(f"{key}:")]
        return "\n".join([*lines, f"{key}: {value}", ""])
    return text + f"{section}:\n  {key}: {value}\n"


def test_recipe(number, tried, file):
    draw = random.Random(f"recipe {number}")
    text = draw.choice(BASES)
    change = draw.randint(0, 3)
    if change == 0:
        text = mutate(draw, text, ODD_YAML)
    elif change == 1:
        text = mutate(draw, text)
    elif change == 2:
        text = with_field(draw, text)
    else:
        text = draw.choice([*ODD_YAML, *ODD_TEXT])
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    check(tried, file)


def test_overrides(number, tried, file):
    draw = random.Random(f"overrides {number}")
    file.write_text(draw.choice(BASES), encoding="utf-8")
    overrides = [f"{draw.choice(FIELDS)}={draw.choice(ODD_YAML)}" for _ in range(draw.randint(1, 3))]
    if draw.random() < 0.3:
        overrides = [mutate(draw, override) for override in overrides]
    if draw.random() < 0.1:
        overrides.append("name=a\udcff")
    check(tried, file, overrides)
