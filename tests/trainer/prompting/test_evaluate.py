"""Prompts of a recipe's data, and metrics of the most likely label words."""

import json
import random
from pathlib import Path

import pytest
from fangyan.cli import app
from fangyan.data.example import Example
from fangyan.errors import UserError
from fangyan.prompting.evaluate import evaluate_prompts, parse_words
from fangyan.prompting.template import CONTENT_FREE, Template, draw_shots
from fangyan.recipe import Recipe
from fangyan.tasks.task import Unit
from fangyan.tasks.token_classification.task import TokenClassification
from model_families import BY_NAME, save

WORDS = {"low": "w70", "high": "w71"}


def recipe(folder, name="sequence_classification", family="Qwen 3", **fields):
    if not (folder / "base").exists():
        save(BY_NAME[family], folder / "base")
    draw = random.Random(0)
    records = []
    for _ in range(40):
        words = [f"w{draw.randint(10, 60)}" for _ in range(draw.randint(1, 6))]
        tags = ["low" if int(word[1:]) < 35 else "high" for word in words]
        both = {"text": " ".join(words), "label": tags[-1], "pair": words[0]}
        records.append({"tokens": words, "tags": tags} if name == "token_classification" else both)
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    data = {"format": "jsonl", "train": str(folder / "train.jsonl"), "dev": 0.5}
    content = {"name": "x", "task": {"name": name}, "data": data, "model": {"path": str(folder / "base")}}
    for key, section in fields.items():
        content[key] |= section
    return Recipe.model_validate(content)


@pytest.mark.parametrize("shots", [0, 3])
def test_classes_of_texts(tmp_path, shots):
    found = evaluate_prompts(recipe(tmp_path), shots, 12, WORDS)
    assert (found.split, found.examples, found.shots) == ("dev", 12, shots)
    assert found.plain.keys() == found.calibrated.keys() == found.floor.keys()
    shown = [block.split("\n") for block in found.prompt.split("\n\n")]
    assert len(shown) == shots + 1
    for text, label in shown[:-1]:
        last = int(text.rpartition("w")[2])
        assert label == f"Label: {WORDS['low' if last < 35 else 'high']}"
    assert shown[-1][1] == "Label:"
    again = evaluate_prompts(recipe(tmp_path), shots, 12, WORDS)
    assert again == found


@pytest.mark.slow
def test_a_model_that_has_learned_the_prompts_is_right(tmp_path):
    """A run of a language model on texts as the template writes them: prompts then find the labels."""
    lines = []
    draw = random.Random(1)
    for _ in range(600):
        words = [f"w{draw.randint(10, 60)}" for _ in range(draw.randint(1, 6))]
        lines.append(f"w80 {' '.join(words)} {WORDS['low' if int(words[-1][1:]) < 35 else 'high']}")
    (tmp_path / "lm.txt").write_text("\n".join(lines), encoding="utf-8")
    save(BY_NAME["Qwen 3"], tmp_path / "base")
    (tmp_path / "lm.yaml").write_text(
        json.dumps(
            {
                "name": "lm",
                "run_dir": str(tmp_path / "lm"),
                "task": {"name": "causal_lm"},
                "data": {"format": "text", "train": str(tmp_path / "lm.txt")},
                "model": {"path": str(tmp_path / "base")},
                "optimizer": {"lr": 1e-2},
                "train": {"epochs": 4, "batch_tokens": 256},
            }
        ),
        encoding="utf-8",
    )
    app(["train", str(tmp_path / "lm.yaml")], standalone_mode=False)
    prompted = recipe(tmp_path, model={"path": str(tmp_path / "lm")})
    found = evaluate_prompts(prompted, 0, 20, WORDS, "w80 {text}")
    assert found.plain["accuracy"] > 85.0 > found.floor["accuracy"]


def test_tags_of_tokens(tmp_path):
    found = evaluate_prompts(recipe(tmp_path, "token_classification"), 4, 5, WORDS)
    assert set(found.plain) == {"token_accuracy"}
    *shown, last = found.prompt.split("\n\n")
    assert [block.split("Tag:")[1].strip() in WORDS.values() for block in shown] == [True] * 4
    sentence, word, tag = last.split("\n")
    assert word.removeprefix("Word: ") == sentence.partition("«")[2].partition("»")[0]
    assert tag == "Tag:"


def test_no_text_that_is_scored_is_shown(tmp_path):
    """Utterances such as yes are in train and in test."""
    both = recipe(tmp_path)
    same = recipe(tmp_path, data={"dev": both.data.train})
    scored = {example.fields["text"] for example in same.data.load(0)["dev"]}
    found = evaluate_prompts(same, 40, 12, WORDS)
    shown = [block.split("\n")[0].removeprefix("Text: ") for block in found.prompt.split("\n\n")[:-1]]
    assert len(scored) - 12 == len(shown) == len(set(shown)) == found.shots


def test_pairs(tmp_path):
    columns = {"text": "text", "pair": "pair", "label": "label"}
    found = evaluate_prompts(recipe(tmp_path, data={"columns": columns}), 1, 4, WORDS)
    assert "Second text: w" in found.prompt


def test_units_mark_the_token_that_is_meant():
    task = TokenClassification(["x", "y"], "plain")
    example = Example({"tokens": ("a", "b", "a"), "tags": ("x", "x", "y")}, "", "")
    assert [unit.fields["marked"] for unit in task.units(example)] == ["«a» b a", "a «b» a", "a b «a»"]
    example.fields["spaces"] = (False, True, False)
    assert [unit.fields["marked"] for unit in task.units(example)] == ["«a»b a", "a«b» a", "ab «a»"]
    assert task.units(example)[2] == Unit({"sentence": "ab a", "marked": "ab «a»", "token": "a"}, "y")


def test_shots_are_as_many_of_each_label():
    examples = [Example({"text": str(i), "label": "abbbbbbbbc"[i % 10]}, "", "") for i in range(50)]

    def units(example):
        return [Unit({"text": example.fields["text"]}, example.fields["label"])]

    for number in (1, 2, 3, 6, 7, 30, 100):
        shots = draw_shots(examples, units, number, 0, lambda example: False)
        counts = sorted([unit.label for unit in shots].count(label) for label in "abc")
        assert len(shots) == min(number, 50)
        assert counts[2] - counts[0] <= 1 or counts[0] == 5  # there are no more
        assert len({unit.fields["text"] for unit in shots}) == len(shots)
    assert draw_shots(examples, units, 6, 0, lambda example: False) == draw_shots(
        examples, units, 6, 0, lambda example: False
    )
    assert draw_shots(examples, units, 6, 0, lambda example: False) != draw_shots(
        examples, units, 6, 1, lambda example: False
    )
    assert draw_shots(examples, units, 0, 0, lambda example: False) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{text", "expected '}' before end of string, expected some of {text}"),
        ("{tweet} is", "has {tweet}, expected some of {text}"),
        ("words", "is without a field, expected some of {text}, and some words"),
        ("{text} ", "is without words beside its fields"),
        ("{} is", "has {}, expected some of {text}"),
        ("{text:d} is", "has more than a name in {text…}, expected some of {text}"),
        ("{text:{wide}} is", "has more than a name in {text…}, expected some of {text}"),
        ("{text!x} is", "has more than a name in {text…}, expected some of {text}"),
    ],
)
def test_template_refuses(text, message):
    with pytest.raises(UserError) as error:
        Template(text).check(["text"])
    assert message in str(error.value)


def test_template_without_content():
    unit = Unit({"text": "佢"}, "x")
    assert Template("A {text} {{b}}").of(unit) == "A 佢 {b}"
    assert Template("A {text}").without_content(unit) == [f"A {text}" for text in CONTENT_FREE]


def test_evaluate_prompts_refuses(tmp_path):
    with pytest.raises(
        UserError, match="task: prompts are for tags and one class per text, found another mask"
    ):
        evaluate_prompts(recipe(tmp_path, "masked_lm"))
    with pytest.raises(
        UserError, match="task: prompts are for tags and one class per text, found another seq"
    ):
        evaluate_prompts(_several(recipe(tmp_path, task={"kind": "multi_label"})))
    with pytest.raises(
        UserError, match="--shots: a prompt with 20 has .* sub-words, but the model takes 512"
    ):
        evaluate_prompts(recipe(tmp_path), 20, 5, WORDS, "{text} " + "w10 " * 60)
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    with pytest.raises(UserError, match="model.path: Bert.* sees what follows a sub-word, expected a causal"):
        evaluate_prompts(recipe(encoder, family="BERT"), words=WORDS)


def _several(recipe):
    """The recipe with lists of classes in its file."""
    path = Path(recipe.data.train)
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps(record | {"label": [record["label"]]}) for record in records]
    path.write_text("\n".join(lines), encoding="utf-8")
    return recipe


@pytest.mark.parametrize("text", ["[a]", "{a: 1}", "{a: ' '}", "{a: ", "a"])
def test_parse_words_refuses(text):
    with pytest.raises(UserError, match="^--words"):
        parse_words(text)


def test_parse_words_reads_classes_as_files_have_them():
    assert parse_words("{true: 係, false: ' 唔係', 2: 一}") == {"true": "係", "false": "唔係", "2": "一"}


def test_prompt_by_the_command(tmp_path, capsys):
    path = tmp_path / "x.yaml"
    path.write_text(recipe(tmp_path).to_yaml(), encoding="utf-8")
    words = "{low: w70, high: w71}"
    arguments = [str(path), "--shots", "2", "--words", words, "--show", "--examples", "6"]
    app(["prompt", *arguments], standalone_mode=False)
    out = capsys.readouterr().out
    assert "Label: w7" in out
    assert "6 examples of dev, 2 shown" in out
    assert "macro f1" in out
