"""``fangyan check``: every fault planted in a file made for it is found, and none in a clean one."""

import json

import pytest
from fangyan.recipe import load_recipe
from fangyan.training.check import check
from fangyan.training.check_report import as_json

RECIPE = """
name: planted
data: {format: conll, train: train.conll, dev: dev.conll}
model: {path: cantonese-electra, pretrained: false}
train: {epochs: 2, batch_tokens: 48}
"""
CITIES = ["香港", "九龍", "沙田", "大埔", "旺角", "中環", "灣仔", "元朗", "屯門", "荃灣", "西貢", "北角"]


def sentence(*pairs):
    return "".join(f"{token}\t{tag}\n" for token, tag in pairs) + "\n"


def living_in(city, who):
    return sentence((who, "O"), ("住", "O"), ("喺", "O"), (city[0], "B-LOC"), (city[1], "I-LOC"))


CLEAN = "".join(living_in(city, "我") for city in CITIES)
CLEAN_DEV = "".join(living_in(city, "你") for city in CITIES)


@pytest.fixture
def report_on(tmp_path, monkeypatch):
    """Checks files of the given sentences."""
    monkeypatch.chdir(tmp_path)

    def report_on(train, dev, *overrides):
        (tmp_path / "train.conll").write_text(train, encoding="utf-8")
        (tmp_path / "dev.conll").write_text(dev, encoding="utf-8")
        (tmp_path / "planted.yaml").write_text(RECIPE, encoding="utf-8")
        return check(load_recipe("planted.yaml", list(overrides)))

    return report_on


def test_check_of_clean_files_finds_nothing(report_on):
    report = report_on(CLEAN, CLEAN_DEV)
    assert report.findings == []
    assert report.splits["train"] == {"examples": 12, "units": 60, "sub-words": 12 * 7}
    assert report.labels["train"] == {"O": 36, "B-LOC": 12, "I-LOC": 12}
    assert report.lengths == {8: 12}
    # Rows of 7 sub-words: 6 in 48, and a row of 64 for them together.
    assert report.empty == {"packed": pytest.approx(1 - 42 / 64), "padded": 0.0}
    assert report.seconds > 0
    assert report.memory.peak > report.memory.loading > 0


# Sentences of train and of dev, in which line {} is the first of them; where they are found, and how.
FAULTS = (
    (sentence(("佢", "O"), ("係", "B-PER")), "", "data.train", "occur fewer than 10 times: B-PER 1"),
    ("", sentence(("邊", "B-XYZ")), "", "tags that never occur in train: B-XYZ"),
    (
        "",
        sentence(("我", "I-LOC"), ("港", "O")),
        "",
        "rule of IOB2: dev.conll:{} (I-LOC begins the sentence)",
    ),
    (sentence(("ꙮ", "O")), "", "", "characters unknown to the tokenizer: 1, which occur once (ꙮ 1)"),
    (
        living_in("香港", "我"),
        "",
        "data.train",
        "repeat another of them, such as train.conll:{} (as train.conll:1)",
    ),
    ("", living_in("九龍", "我"), "data.dev", "in train too, such as dev.conll:{} (as train.conll:7)"),
    (
        sentence(("我", "O"), ("住", "O"), ("喺", "O"), ("沙", "B-LOC"), ("田", "O")),
        "",
        "train.conll:{}",
        "token 5 '田' is O, but I-LOC in the same sentence in train.conll:13",
    ),
    (
        sentence(*[("呀", "O")] * 40) * 40,
        "",
        "data.train",
        "tags are imbalanced: O is 98% of them, B-PER is 0.0",
    ),
    (sentence(*[("住", "O")] * 60), "", "data.train", "1 of its 58 examples are longer than 48 sub-words"),
    (sentence(("呵" * 60, "O")), "", "train.conll:{}", "has 60 sub-words, expected at most 46"),
)


def test_check_finds_every_planted_fault(report_on):
    texts, expected = [CLEAN, CLEAN_DEV], []
    for *planted, place, words in FAULTS:
        line = next(texts[i].count("\n") + 1 for i in (0, 1) if planted[i])
        expected.append((place.format(line), words.format(line)))
        texts = [text + new for text, new in zip(texts, planted, strict=True)]
    report = report_on(*texts)
    assert report.errors == []
    for place, words in expected:
        assert any(found.place == place and words in found.message for found in report.warnings), words


@pytest.mark.parametrize(
    ("overrides", "train", "place", "words"),
    [
        ((), "我\tO\n住\tO\tx\n", "train.conll:2", "3 columns, expected 2 (token, tag)"),
        (("model.path=nowhere",), CLEAN, "model.path", "cannot be loaded"),
        (("task.labels=[O]", "task.scheme=plain"), CLEAN, "train.conll:1", "is not in the tag set of 1: O"),
        (("adaptation.freeze_layers=9",), CLEAN, "adaptation.freeze_layers", "layer 9, but the model has"),
    ],
)
def test_check_reports_what_stops_a_run_as_an_error(report_on, overrides, train, place, words):
    (error,) = report_on(train, CLEAN_DEV, *overrides).errors
    assert error.place == place
    assert words in error.message


def test_check_as_json_is_json(report_on):
    content = json.loads(json.dumps(as_json(report_on(CLEAN, CLEAN_DEV))))
    assert content["splits"]["train"]["tokens"] == 60
    assert content["errors"] == content["warnings"] == []
    assert content["memory"]["peak"] > content["memory"]["weights"] > 0


@pytest.mark.slow
def test_check_command(cli):
    """Exit codes tell errors from warnings; a run prints what its check warns of, once."""
    (cli.folder / "bad.conll").write_text("我\tO\n住\tO\tx\n", encoding="utf-8")
    arguments = cli.train_arguments("train.epochs=1")[1:]
    out, _ = cli("check", *arguments, "--json")
    warnings = json.loads(out)["warnings"]
    assert any("never occur in train" in warning["message"] for warning in warnings)
    out, _ = cli("check", *arguments, "data.format=conll", "data.train=bad.conll", code=1)
    assert "errors 1, warnings 0" in out
    _, err = cli("check", "cantonese-pos", "train.epoch=1", code=2)
    assert "train.epoch: unknown key" in err
    _, err = cli.train("train.epochs=1")
    for warning in warnings:
        assert err.count(warning["message"]) == 1
