"""Predictions of odd texts, and command lines: an answer or a sentence, and neither traceback nor hang."""

import random

import fangyan
import pytest
import tiny_exports
from malformed import ODD_TEXT, ODD_YAML, json_value, mutate

NUMBERS = ["0", "1", "5", "-1", "9" * 40, "1e-300", "1e300", "nan", "inf", "-2.5", "0.5", "1.0", "x", ""]
OUTPUTS = ["out.txt", ".", "/dev/null", "/dev/full", "none/out", "a" * 300, "/proc/x"]
TEXTS = ["我食飯", "今日去街飲茶", "ngóh heui  tái", "食" * 3000, *ODD_TEXT]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models, and small files."""
    folder = tmp_path_factory.mktemp("fuzz")
    tiny_exports.tagger(folder / "tagger")
    tiny_exports.writer(folder / "writer")
    (folder / "a.conll").write_text("我\tB-n\n食\tB-v\n", encoding="utf-8")
    (folder / "a.jsonl").write_text('{"tokens": ["我"], "tags": ["B-n"]}\n', encoding="utf-8")
    (folder / "a.txt").write_text("我\n\x1b[2J\n", encoding="utf-8")
    (folder / "bytes.txt").write_bytes(b"\xff\xfe\n\x00")
    (folder / "r.yaml").write_text(
        "name: x\ndata: {format: conll, train: none.conll}\nmodel: {path: tagger}\n", encoding="utf-8"
    )
    return folder


@pytest.fixture(scope="module")
def predictors(folder):
    return [fangyan.load(folder / name) for name in ("tagger", "writer")]


def test_prediction(number, tried, predictors):
    draw = random.Random(f"prediction {number}")
    predictor = draw.choice(predictors)
    texts = [draw.choice((draw.choice(TEXTS), mutate(draw, draw.choice(TEXTS)))) for _ in range(2)]
    options = {}
    if predictor is predictors[1]:
        options = {"max_new_tokens": draw.choice((0, 1, 3, -5, 10**30))}
        options["temperature"] = draw.choice(
            (0.0, 1e-300, 1e-3, 1.0, 1e300, -1.0, float("nan"), float("inf"))
        )
    predictions = tried(
        lambda: [
            "".join(prediction.pieces()) or prediction.record()
            for prediction in predictor.stream(texts, interactive=draw.random() < 0.5, options=options)
        ]
    )
    assert predictions is None or len(predictions) == 2


def arguments(draw):
    """A command line whose commands mostly fail, or end soon."""
    command = draw.choice(("predict", "predict", "predict", "train", "check", "evaluate", "export", "x", ""))
    if command == "predict":
        line = [command, draw.choice(("tagger", "writer", "none", ".", "a.txt", "r.yaml"))]
        line += draw.choice(
            (
                [draw.choice(TEXTS)[:2000]],
                [
                    "--input",
                    draw.choice(("a.conll", "a.jsonl", "a.txt", "bytes.txt", "none", ".", "/dev/null")),
                ],
                ["a\udcff"],
                [],
            )
        )
        for option in ("--max-new-tokens", "--temperature", "--probabilities"):
            if draw.random() < 0.3:
                line += [option, draw.choice(NUMBERS)]
        if draw.random() < 0.2:
            line += ["--format", draw.choice((draw.choice(ODD_YAML), json_value(draw)))[:4000]]
        if draw.random() < 0.1:
            line += ["--output", draw.choice(OUTPUTS)]
    elif command in ("train", "check"):
        line = [
            command,
            draw.choice(("r.yaml", "cantonese-lm", "a.txt", "none", "bytes.txt", "..", "a" * 5000)),
        ]
        line += [
            "data.format=conll",
            "data.train=none.conll",
            "data.dev=none.conll",
            "task.name=token_classification",
        ]
        line += [draw.choice(("model.path=none", f"seed={draw.choice(ODD_YAML)[:1000]}", "name=..", "x"))]
        if draw.random() < 0.3:
            line += [draw.choice(("--ranks", "--seeds", "--folds", "--resume")), draw.choice(NUMBERS)]
    else:
        line = [
            command,
            draw.choice(("tagger", "none", "a.txt", ".", "a\udcff", "")),
            draw.choice(("new", "tagger")),
        ]
    return [argument.replace("\0", "") for argument in line]


def test_command_line(number, cli_in, folder):
    draw = random.Random(f"command {number}")
    line = arguments(draw)
    process = cli_in(folder).start(*line)
    out, err = process.communicate(timeout=120)
    assert process.returncode in (0, 1, 2), line
    assert "Traceback" not in err, line
    assert "Traceback" not in out, line
    assert all(len(sentence) < 700 for sentence in err.splitlines()), line
