"""Recipes: what may be said, and one sentence for what may not."""

import fangyan
import pytest
from fangyan.adaptation import ADAPTATIONS
from fangyan.adaptation.peft_model import PeftMethod
from fangyan.data.formats import FORMATS
from fangyan.errors import UserError
from fangyan.objectives import OBJECTIVES
from fangyan.optimizers import OPTIMIZERS
from fangyan.recipe import RECIPES, Recipe, describe_fields, load_recipe, parse_recipe
from fangyan.tasks import TASKS
from fangyan.training.staged_recipe import load_training

MINIMAL = "name: x\ndata: {format: hkcancor}\n"
TEXT = ("data.format=text", "data.train=a.txt")


def write(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path, overrides=None):
    """The sentence that refuses a recipe."""
    with pytest.raises(UserError) as error:
        load_recipe(path, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_load_recipe_with_defaults_and_overrides(tmp_path):
    path = write(tmp_path, MINIMAL)
    recipe = load_recipe(
        path, ["train.epochs=3", "optimizer.lr=1e-3", "data.dev=[a,b]", "model.pretrained=false"]
    )
    assert (recipe.train.epochs, recipe.optimizer.lr, recipe.model.pretrained) == (3, 1e-3, False)
    assert recipe.data.dev == ["a", "b"]
    assert str(recipe.folder) == "runs/x"
    names = (recipe.task.name, recipe.objective.name, recipe.adaptation.name, recipe.optimizer.name)
    assert names == ("token_classification", "cross_entropy", "full", "adamw")


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer.betas=[0.9,0.98]", "adaptation.freeze_layers=0-3"],
        [
            "adaptation.name=lora",
            "adaptation.quantization=nf4",
            "optimizer.name=sgd",
            "optimizer.momentum=0.5",
        ],
        ["task.name=causal_lm", *TEXT, "objective.label_smoothing=0.1", "train.epochs=2"],
    ],
)
def test_to_yaml_reads_back(tmp_path, overrides):
    recipe = load_recipe(write(tmp_path, MINIMAL), overrides)
    assert load_recipe(write(tmp_path, recipe.to_yaml())) == recipe


def test_load_recipe_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    assert {"cantonese-lm", "cantonese-pos"} <= set(names)
    for name in names:
        recipe = load_training(name)
        assert recipe.name == name
        assert recipe == load_training(RECIPES / f"{name}.yaml")
    assert fangyan.load_recipe("cantonese-lm").task.name == "causal_lm"
    expected = (
        f"cantonese: no such recipe, expected a file or one of {', '.join(names)}; did you mean cantonese-lm?"
    )
    assert refusal("cantonese") == expected
    # A file comes before a name; a name is no path.
    write(tmp_path, MINIMAL).rename(tmp_path / "cantonese-lm")
    assert load_recipe("cantonese-lm").name == "x"
    assert "no such recipe" in refusal("../recipes/cantonese-lm")


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
        (
            "adaptation.freeze_layers=3-1",
            "adaptation.freeze_layers: layers is '3-1', its range 3-1 runs backwards",
        ),
        (
            "adaptation.freeze_layers=all",
            "adaptation.freeze_layers: layers is 'all', expected numbers such as 3, 0-3 or 0,2,4",
        ),
        ("data.format=conll", "data: train is missing; format conll needs the files to train on"),
        ("data.train=0.5", "data.train: train is 0.5, expected files; only dev and test may be fractions"),
        ("data.dev=1.5", "data.dev: "),
        ("name=a/b", "name: string should match pattern"),
        ("epochs", "override 'epochs': expected key.sub=value"),
        ("optimizer.name=adam", "optimizer.name: found 'adam', expected one of 'adamw', "),
        (
            "task.name=tagging",
            "task.name: found 'tagging', expected one of 'token_classification', 'causal_lm'",
        ),
    ],
)
def test_load_recipe_with_a_wrong_field(tmp_path, override, message):
    assert message in refusal(write(tmp_path, MINIMAL), [override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.momentum=0.9"], "optimizer.momentum: unknown key of adamw; expected one of "),
        (
            ["optimizer.name=adamw8bit", "optimizer.alpha=5.0"],
            "optimizer.alpha: unknown key of adamw8bit; expected one of ",
        ),
        (["optimizer.name=lion8bit", "optimizer.eps=1e-8"], "optimizer.eps: unknown key of lion8bit"),
        (["optimizer.name=sgd", "optimizer.betas=[0.9,0.9]"], "optimizer.betas: unknown key of sgd"),
        (["adaptation.rank=8"], "adaptation.rank: unknown key of full; expected one of name, freeze_"),
        (
            ["adaptation.name=ia3", "adaptation.rank=8"],
            "adaptation.rank: unknown key of ia3; expected one of ",
        ),
        (
            ["adaptation.name=lora", "adaptation.virtual_tokens=4"],
            "adaptation.virtual_tokens: unknown key of",
        ),
        (["adaptation.name=lora", "adaptation.freeze_layers=3"], "adaptation.freeze_layers: unknown key of"),
        (
            ["adaptation.name=prompt_tuning", "adaptation.targets=all-linear", "train.packing=false"],
            "adaptation.targets: unknown key of prompt_tuning",
        ),
        (["adaptation.quantization=nf4"], "adaptation.quantization: unknown key of full"),
        (
            ["adaptation.name=ia3", "adaptation.quantization=nf4"],
            "adaptation.quantization: unknown key of ia3",
        ),
        (
            ["adaptation.name=adalora", "adaptation.quantization=nf4"],
            "adaptation.quantization: unknown key of adalora",
        ),
        (["task.name=causal_lm", *TEXT, "task.scheme=iob2"], "task.scheme: unknown key of causal_lm"),
        (["task.name=causal_lm", *TEXT, "task.labels=[a]"], "task.labels: unknown key of causal_lm"),
        (
            ["task.name=causal_lm", *TEXT, "data.tokens=characters"],
            "data.tokens: unknown key of text; expected one of ",
        ),
        (["data.format=conll", "data.train=a", "data.path=corpus"], "data.path: unknown key of conll"),
        (["task.label_smoothing=0.1"], "task.label_smoothing: unknown key of token_classification"),
        (
            ["adaptation.name=lora", "adaptation.adapter_path=old", "adaptation.rank=8"],
            "adaptation: rank is 8, but the adapter in adapter_path has its own; expected no rank",
        ),
        (
            ["adaptation.name=lora", "adaptation.adapter_path=old", "adaptation.targets=[query]"],
            "adaptation: targets is ['query'], but the adapter in adapter_path has its own",
        ),
        (
            ["adaptation.name=dora", "adaptation.adapter_path=old", "adaptation.dropout=0.1"],
            "adaptation: dropout is 0.1, but the adapter in adapter_path has its own",
        ),
        (
            ["adaptation.name=prompt_tuning", "adaptation.adapter_path=a", "adaptation.virtual_tokens=4"],
            "adaptation: virtual_tokens is 4, but the adapter in adapter_path has its own",
        ),
    ],
)
def test_load_recipe_with_a_field_without_effect(tmp_path, overrides, message):
    assert message in refusal(write(tmp_path, MINIMAL), overrides)


FAMILIES = {
    "task": TASKS,
    "data": FORMATS,
    "objective": OBJECTIVES,
    "adaptation": ADAPTATIONS,
    "optimizer": OPTIMIZERS,
}
FOREIGN = [
    (section, name, field)
    for section, family in FAMILIES.items()
    for name, member in family.members.items()
    for field in sorted({f for other in family.members.values() for f in other.model_fields})
    if field not in member.model_fields
]


@pytest.mark.parametrize(("section", "name", "field"), FOREIGN)
def test_parse_recipe_with_a_field_of_another_member(section, name, field):
    """Whatever a family's members have, each refuses what only others have."""
    content = {"name": "x", "data": {"format": "hkcancor"}}
    content[section] = {FAMILIES[section].tag: name, field: None}
    with pytest.raises(
        UserError, match=rf"^recipe: {section}.{field}: unknown key of {name}; expected one of"
    ):
        parse_recipe(content)


OTHER_VALUES = {"rank": 8, "alpha": 1.0, "rslora": True, "dropout": 0.1, "targets": ["query"]}
OTHER_VALUES |= {"virtual_tokens": 4, "preserved": 0.3}


@pytest.mark.parametrize("name", [n for n, m in ADAPTATIONS.members.items() if issubclass(m, PeftMethod)])
def test_parse_recipe_with_any_setting_beside_adapter_path(name):
    member = ADAPTATIONS.members[name]
    for field in member.model_fields.keys() - {"name", "adapter_path", "quantization"}:
        settings = {"name": name, "adapter_path": "old", field: OTHER_VALUES[field]}
        content = {"name": "x", "data": {"format": "hkcancor"}, "adaptation": settings}
        with pytest.raises(UserError, match=f"adaptation: {field} is .* expected no {field}"):
            parse_recipe(content)


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_load_recipe_with_an_adapter_to_train_further(tmp_path, quantization):
    overrides = ["adaptation.name=lora", "adaptation.adapter_path=old"]
    if quantization:
        overrides.append(f"adaptation.quantization={quantization}")
    recipe = load_recipe(write(tmp_path, MINIMAL), overrides)
    assert recipe.adaptation.adapter_path == "old"
    assert recipe.adaptation.base_quantization == quantization


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["adaptation.name=lora", "adaptation.quantization=bf16"],
            "adaptation.quantization: input should be 'nf4', found 'bf16'",
        ),
        (
            ["adaptation.name=prompt_tuning"],
            "train.packing is true, but prompt_tuning puts its own tokens before every sentence; "
            "expected train.packing=false",
        ),
        (
            ["adaptation.name=adalora", "engine.zero_stage=2"],
            "engine.zero_stage is 2, but adalora takes 0 at most",
        ),
        (
            ["task.name=causal_lm"],
            "data.content makes tokens and tags of a hkcancor file, but causal_lm needs text; expected "
            "sentence_types",
        ),
        (
            ["task.name=causal_lm", "data={format: conll, train: a.conll}"],
            "data.format is conll, which has no text; expected hkcancor, jsonl, csv, datasets, text, "
            "common_voice",
        ),
        (
            TEXT,
            "data.format is text, which has no tokens and tags; expected hkcancor",
        ),
        (
            ["data={format: csv, train: a.csv, columns: {text: tweet, label: dialect}}"],
            "data.columns makes text and label of a csv file, but token_classification needs tokens and "
            "tags; expected the file's columns of those, such as {tokens: NAME, tags: NAME}",
        ),
        (
            ["data={format: csv, train: a.csv, columns: {tokens: words}}", "task.name=causal_lm"],
            "data.columns makes tokens and tags of a csv file, but causal_lm needs text; expected",
        ),
        (
            ["adaptation.name=lora", "adaptation.rank=0"],
            "adaptation.rank: input should be greater than or equal",
        ),
        (["engine.offload=optimizer"], "engine.zero_stage is 0, which offloads nothing; expected 1, 2 or 3"),
    ],
)
def test_load_recipe_with_sections_that_do_not_fit(tmp_path, overrides, message):
    assert message in refusal(write(tmp_path, MINIMAL), list(overrides))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\ndata: {format: hkcancor\n", r"r.yaml:3: not a YAML recipe"),
        ("- a\n", "expected a YAML mapping"),
        ("data: {format: hkcancor}\n", "name: missing; this field is required"),
        ("name: x\ndata: {train: a}\n", "data.format: missing; this field is required"),
        ("name: x\nname: y\ndata: {format: hkcancor}\n", "not a YAML recipe: found duplicate key name"),
        (MINIMAL + "train: {epochs: 1, epochs: 2}\n", "not a YAML recipe: found duplicate key epochs"),
        ("name: !!python/name:os.system x\ndata: {format: hkcancor}\n", "not a YAML recipe"),
    ],
)
def test_load_recipe_of_a_file_that_is_none(tmp_path, text, message):
    assert message in refusal(write(tmp_path, text))


def test_load_recipe_that_is_not_utf8(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"name: \xff\n")
    assert "r.yaml: not a YAML recipe" in refusal(path)


def test_load_recipe_of_a_missing_file(tmp_path):
    assert "none.yaml: no such recipe" in refusal(tmp_path / "none.yaml")


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "1.e-3", "0.1e-2", "+1e-3", "0.001", "1.0e-3"])
def test_load_recipe_reads_a_number(tmp_path, number):
    """YAML 1.1 takes 1e-3 for a string; 1.2, and whoever writes a recipe, for a number."""
    path = write(tmp_path, MINIMAL + f"optimizer: {{lr: {number}}}\n")
    assert load_recipe(path).optimizer.lr == 1e-3
    assert load_recipe(path, [f"optimizer.lr={number}"]).optimizer.lr == 1e-3


@pytest.mark.parametrize("text", ["e5", "1e", "1e-3x", "-e3"])
def test_load_recipe_leaves_other_text(tmp_path, text):
    assert load_recipe(write(tmp_path, MINIMAL), [f"name=a.{text}"]).name == f"a.{text}"
    assert "found " + repr(text) in refusal(write(tmp_path, MINIMAL), [f"optimizer.lr={text}"])


def test_load_recipe_does_not_interpolate(tmp_path, monkeypatch):
    """A folder may be called ${name}, and nothing of the environment gets into a recipe."""
    monkeypatch.setenv("SECRET", "x")
    path = write(tmp_path, MINIMAL + "run_dir: runs/${name}\nmodel: {path: '${oc.env:SECRET}'}\n")
    recipe = load_recipe(path, ["data.path=${seed}"])
    assert recipe.run_dir == "runs/${name}"
    assert recipe.model.path == "${oc.env:SECRET}"
    assert recipe.data.path == "${seed}"


def test_describe_fields_has_every_field():
    rows = describe_fields()
    assert len(rows) > 30
    assert all(row.meaning for row in rows)
    assert ("seed", "0") in [row[:2] for row in rows]
    assert set(Recipe.model_fields) == {row.name.split(".")[0] for row in rows}
    members = {row.name: row.members for row in rows}
    assert len({(row.name, row.members) for row in rows}) == len(rows)
    for name in ("objective.label_smoothing", "optimizer.lr", "adaptation.name"):
        assert members[name] == ()
    assert members["optimizer.momentum"] == ("sgd",)
    assert members["adaptation.quantization"] == ("lora", "dora")
