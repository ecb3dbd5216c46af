"""Recipes that nothing could run: each ends in one sentence, at once, whatever is in it."""

import os
import tracemalloc
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import pytest
from annotated_types import Le, Lt
from fangyan.config import Config, family_of
from fangyan.errors import UserError
from fangyan.recipe import Recipe, load_recipe, parse_recipe
from fangyan.training.repeats import variants

MINIMAL = "name: x\ndata: {format: hkcancor}\n"
CONLL = "name: x\ndata: {format: conll, train: a.conll}\n"
DIGITS = "9" * 5000


def refusal(tmp_path, text, *overrides):
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_recipe(path, list(overrides))
    sentence = str(error.value).removeprefix(str(path))
    assert "\n" not in sentence
    assert len(sentence) < 400
    assert sentence.isprintable()
    return sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("5", "expected a YAML mapping of recipe fields"),
        ("", "expected a YAML mapping of recipe fields"),
        (f"seed: {DIGITS}\n", "not a YAML recipe: a number of 5,000 characters"),
        (f"seed: 0x{DIGITS[:300]}\n", "not a YAML recipe: a number of more than 64 bits"),
        ("[" * 100_000, "not a YAML recipe: values are nested too deep"),
        ("a: !!bool x\n", "not a YAML recipe: a value is not what its tag"),
        ("a: !!map x\n", "not a YAML recipe: "),
        ('name: "a\\0b"\n', "not a YAML recipe: NUL, or text that is not UTF-8"),
        ('name: "\\ud800"\n', "not a YAML recipe: "),
        ("a: &a [*a]\n", "not a YAML recipe: a value holds itself"),
        (
            "a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]\n"
            + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
            "not a YAML recipe: more than 100,000 values",
        ),
        (MINIMAL + "train: {batch-tokens: 5}\n", "train.batch-tokens: unknown key; expected one of"),
        (MINIMAL + "learning rate: 1\n", "learning rate: unknown key; expected one of"),
        (MINIMAL + "bogus: 1\n", ": bogus: unknown key; expected one of"),
        (f"name: {'1' * 500_000}x\n", "name: string should have at most 80 characters"),
        (f"seed: {'1:' * 250_000}1\n", "not a YAML recipe: a number of 500,001 characters"),
        (f"seed: {'1' * 500_000}.5e5\n", "not a YAML recipe: a number of 500,004 characters"),
        ("x" * 1_000_001, "not a YAML recipe: 1,000,001 characters, expected 1,000,000 at most"),
    ],
)
def test_load_recipe_of_a_text_that_is_none(tmp_path, text, sentence):
    assert sentence in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("name=..", "name: string should match pattern"),
        ("name=.", "name: string should match pattern"),
        ("name=.x", "name: string should match pattern"),
        ('name="a\\eb"', "name: string should match pattern"),
        (f"name={'x' * 81}", "name: string should have at most 80 characters"),
        ("name=\udcff", "override 'name=\\udcff': not a YAML recipe: unacceptable character"),
        ("run_dir=.", "run_dir: found '.', expected a folder of the run's own"),
        ("run_dir=x/..", "run_dir: found 'x/..', expected a folder of the run's own"),
        ("run_dir=../..", "run_dir: found '../..', expected a folder of the run's own"),
        ("run_dir=/", "run_dir: found '/', expected a folder of the run's own"),
        ('run_dir=""', "run_dir: found '', expected a name"),
        ('run_dir="a\\eb"', "expected a name without control characters"),
        (f"run_dir={'a/' * 2000}", "run_dir: found a path of 4,000 characters, expected 4,095 bytes"),
        (f"run_dir={'方' * 2000}", "run_dir: found a path of 2,000 characters, expected 4,095 bytes"),
        ("engine.zero_stage=true", "engine.zero_stage: zero_stage is True, expected 0, 1, 2 or 3"),
        ("seed=-1", "seed: input should be greater than or equal to 0, found -1"),
        ("seed=4294967296", "seed: input should be less than 4294967296"),
        (f"seed={DIGITS}", "not a YAML recipe: "),
        ("adaptation.freeze_layers=0-9999999999", "expected numbers such as 3, 0-3 or 0,2,4"),
        ("adaptation.freeze_layers=-1", "expected numbers such as 3, 0-3 or 0,2,4"),
        (f"adaptation.freeze_layers='{DIGITS}'", "expected numbers such as 3, 0-3 or 0,2,4"),
        (f"data.fold={DIGITS}/{DIGITS}", "data.fold: string should match pattern"),
    ],
)
def test_load_recipe_with_a_field_out_of_bounds(tmp_path, override, sentence):
    assert sentence in refusal(tmp_path, MINIMAL, override)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (MINIMAL, "seed"),
        (MINIMAL, "train.epochs"),
        (MINIMAL, "train.batch_tokens"),
        (MINIMAL, "train.gradient_accumulation_steps"),
        (MINIMAL, "train.early_stopping"),
        (MINIMAL, "train.keep_checkpoints"),
        (MINIMAL, "train.log_every"),
        (MINIMAL, "model.max_length"),
        (MINIMAL, "model.extend_vocabulary"),
        (
            MINIMAL + "adaptation: {name: prefix_tuning}\ntrain: {packing: false}\n",
            "adaptation.virtual_tokens",
        ),
        (MINIMAL + "adaptation: {name: lora}\n", "adaptation.rank"),
        (CONLL, "data.columns.token"),
    ],
)
def test_load_recipe_with_a_number_that_nothing_could_do(tmp_path, text, field):
    """Of 18 digits, which is still a number of 64 bits, and of 40, which is none."""
    assert f"{field.partition('.')[0]}" in refusal(tmp_path, text, f"{field}={'9' * 18}")
    assert "a number of more than 64 bits" in refusal(tmp_path, text, f"{field}={'9' * 40}")


def numbers(annotation, bounds=()):
    """Yield, of each number in a field's type, what bounds it."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *marks = get_args(annotation)
        yield from numbers(inner, [*bounds, *marks])
    elif annotation in (int, float):
        yield [mark for bound in bounds for mark in getattr(bound, "metadata", [bound])]
    elif origin is not Literal:
        for argument in get_args(annotation):
            yield from numbers(argument, bounds)


def test_every_number_of_a_recipe_has_an_upper_bound():
    found = 0
    for section in sections(Recipe):
        for name, field in section.model_fields.items():
            for bounds in numbers(field.annotation, field.metadata):
                found += 1
                assert any(isinstance(bound, Le | Lt) for bound in bounds), f"{section.__name__}.{name}"
    assert found > 30


def sections(section):
    """Yield a section of the recipe and all in it."""
    yield section
    for field in section.model_fields.values():
        family = family_of(field)
        inner = list(family.members.values()) if family else [field.annotation]
        for one in inner:
            if isinstance(one, type) and issubclass(one, Config):
                yield from sections(one)


def test_freeze_layers_of_a_large_range_takes_no_memory(tmp_path):
    """A list of its layers would: the range is refused once the model says how many it has."""
    path = tmp_path / "r.yaml"
    path.write_text(MINIMAL, encoding="utf-8")
    tracemalloc.start()
    load_recipe(path, ["adaptation.freeze_layers=0-999999"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000


def test_home_folder_in_paths(tmp_path, monkeypatch):
    """In every path of a recipe; ./~ is a folder of that name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "r.yaml"
    path.write_text(CONLL, encoding="utf-8")
    recipe = load_recipe(
        path,
        ["run_dir=~/run", "data.train=[~/a.conll]", "data.dev=~/b", "data.cache_dir=~/c", "model.path=~/m"],
    )
    assert recipe.folder == tmp_path / "run"
    assert recipe.data.train == [f"{tmp_path}/a.conll"]
    assert (recipe.data.dev, recipe.data.cache_dir) == (f"{tmp_path}/b", f"{tmp_path}/c")
    assert recipe.model.path == f"{tmp_path}/m"
    beside = load_recipe(path, ["run_dir=./~/x"])
    assert beside.folder == Path("~/x")
    assert [one.folder for one in variants(beside, 2, None).values()] == [
        Path("~/x/seed-0"),
        Path("~/x/seed-1"),
    ]


def test_load_recipe_never_reads_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    path = tmp_path / "r.yaml"
    for value in ("${oc.env:SECRET_TOKEN}", "${SECRET_TOKEN}", "$SECRET_TOKEN"):
        path.write_text(CONLL + f"run_dir: {value}\nmodel: {{path: 'x/{value}'}}\n", encoding="utf-8")
        recipe = load_recipe(path)
        assert recipe.run_dir == value
        assert recipe.model.path == f"x/{value}"
        assert "hunter2" not in recipe.to_yaml()
        assert "should match pattern" in refusal(tmp_path, MINIMAL, f"name={value}")


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.getenv [SECRET_TOKEN]",
        "!!python/object/apply:os.mkdir [made]",
        "!!python/name:os.environ",
        "!!python/module:os",
        "!ENV ${SECRET_TOKEN}",
        "!include /etc/passwd",
    ],
)
def test_yaml_tags_are_refused(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    before = sorted(os.listdir())
    sentence = refusal(tmp_path, MINIMAL + f"run_dir: {value}\n")
    assert "could not determine a constructor for the tag" in sentence
    assert "hunter2" not in sentence
    assert sorted(os.listdir()) == sorted({*before, "r.yaml"})


def test_a_sentence_has_a_bound_whatever_it_quotes():
    sentence = str(UserError(f"a.conll:1: tag {'B' * 5000!r} is not of scheme IOB2, expected O"))
    assert len(sentence) < 600
    assert sentence.startswith("a.conll:1: tag 'BBB")
    assert sentence.endswith("is not of scheme IOB2, expected O")


@pytest.mark.parametrize("value", ["5minutes", "0min", "1.5h", "", "15min\n", "١٥min"])
def test_checkpoint_every_says_what_a_time_is(value):
    content = {"name": "x", "data": {"format": "conll", "train": "a"}, "train": {"checkpoint_every": value}}
    with pytest.raises(
        UserError, match="train.checkpoint_every: found .*, expected steps, such as 200, or a time"
    ):
        parse_recipe(content)
