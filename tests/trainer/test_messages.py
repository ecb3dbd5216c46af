"""What every command prints, line by line: its results, what it says on the way, --quiet and --json."""

import json
import re
from pathlib import Path

import pytest
from fangyan.cli import COMMANDS, app
from model_families import BY_NAME as FAMILIES
from model_families import save
from probed_runs import TAGGER, run_folder
from typer.main import get_command

PAGE = Path(__file__).parents[2] / "docs/commands.md"
# Commands that print no single result: predict writes a line per text, others talk with someone.
STREAMS = {"init", "predict", "chat", "serve", "ui"}

WARNED = [
    r"data\.dev: 10 of its 10 examples are in train too, such as .*dev\.jsonl:1 \(as .*train\.jsonl:1\): .*",
    r"characters unknown to the tokenizer: 11, which occur 1,362 times \(.*\), all of them the same .*",
]
LOG = [
    *WARNED,
    r"run: examples train 40, dev 10; XLMRobertaForTokenClassification on 1 x \w+, ZeRO 0, fp32, 0 frozen .*",
    r"before  dev   token accuracy \d+\.\d\d",
    r"epoch  1  dev   token accuracy \d+\.\d\d",
    r"the model is worse than a guess: token accuracy of dev is .*",
]
SCORES = [r"dev by tag \(percent\)", "dev: most confused", r"Before and after \(percent\)"]
END = [
    r"2 steps, best at 2, [\d,]+ tokens/s, peak memory \d\.\d\d GB",
    "report: {folder}/report.html",
    "run folder: {folder}",
]
MEMORY = "run: one rank of 1, ZeRO 0, fp32, offload none"
NO_TEST = "fangyan: there is no test split; dev has chosen the best epochs, so that its scores are too good"
SPACE = "tune={optimizer.lr: {log: [1.0e-5, 1.0e-3]}}"
RECIPE = ("run/recipe.yaml", "train.epochs=1", "train.report=true")

# Arguments, whose {folder} is a new one; lines of standard output without the rows of tables; lines of
# standard error; those of them that a quiet command says; and what its JSON document has.
CASES = {
    "env": ((), [], [], [], {"python", "torch", "GPU"}),
    "recipes": (
        (),
        ["fangyan recipes NAME prints one, and fangyan train NAME runs it."],
        [],
        [],
        {"recipes"},
    ),
    "check": (
        RECIPE,
        [
            "run",
            "Labels: 10",
            "Sequences of train",
            "XLMRobertaForTokenClassification: 34,890 parameters, 34,890 of them trained, in 2 steps",
            r"padding: .* of a batch \(layout \w+\); with a sequence per row .*",
            r"time: \d\.\d s for forwards and backwards, by a few micro-batches here; .*",
            MEMORY,
            r"Warnings \(2\)",
            "run: errors 0, warnings 2",
        ],
        [],
        [],
        {"errors", "warnings", "memory", "seconds"},
    ),
    "estimate-memory": (RECIPE, [MEMORY], [], [], {"peak", "loading", "weights"}),
    "evaluate": (
        ("run",),
        [r"Scores by tag \(percent\)", "Scores: most confused"],
        [],
        [],
        {"run", "metrics", "reports"},
    ),
    "report": (
        ("run",),
        ["run/report.html"],
        ["fangyan: the model of run runs on the dev split, whose predictions were not kept"],
        [],
        {"report"},
    ),
    "compare": (
        ("run", "run", "--resamples", "100"),
        ["the dev split of both: resampled by 10 examples; 100 resamples"],
        [NO_TEST],
        [],  # the document has it
        {"metrics", "runs", "data"},
    ),
    "probe": (
        ("run", "--part", "groups", "--resamples", "100"),
        ["By length"],
        ["fangyan: resampled by 10 examples", "fangyan: JSON and pictures: run/probe"],
        [],
        {"groups"},
    ),
    "select": (
        ("run", "--input", "pool.txt", "--number", "1", "--strategy", "entropy"),
        [r"# source = pool\.txt:\d", r"# 1 = w\d+ T\d:0\.\d+ .*", r"w\d+\tT\d"],
        ["fangyan: 1 of 2 sentences of 1 token, by entropy"],
        [],
        {"output", "selected"},
    ),
    "export": (
        ("run", "{folder}"),
        [],
        ["fangyan: the model is in {folder}"],
        [],
        {"output", "format", "merged"},
    ),
    "prompt": (
        (*RECIPE, "model.path=causal", "--examples", "1", "--words", "{words}"),
        [],
        [],
        [],
        {"split", "examples", "floor", "plain", "calibrated", "prompt"},
    ),
    "train": (
        (*RECIPE, "run_dir={folder}"),
        [*SCORES, *END],
        LOG,
        [*WARNED, LOG[-1]],
        {"folder", "before", "after", "steps", "tokens_per_second"},
    ),
    "tune": (
        (*RECIPE, "run_dir={folder}", SPACE, "--trials", "1"),
        ["All trials", "the best trial's run: {folder}/trial-0000; its recipe: {folder}/best.yaml"],
        [
            r"trial 0 \(1 of 1\): optimizer\.lr=.*",
            *LOG[:-1],
            *SCORES,
            LOG[-1],
            END[0],
            "report: {folder}/trial-0000/report.html",
            "run folder: {folder}/trial-0000",
            r"trial 0: complete, token accuracy \d+\.\d\d",
        ],
        [*WARNED, LOG[-1]],
        {"folder", "best"},
    ),
}
WORDS = "{" + ", ".join(f"T{i}: w{i + 70}" for i in range(10)) + "}"


@pytest.fixture(scope="module")
def here(tmp_path_factory, cli_in):
    """A run of a model that was not trained, a model to prompt, and sentences, in one folder."""
    folder = tmp_path_factory.mktemp("messages")
    run_folder(TAGGER, folder)
    (folder / "causal").mkdir()
    save(FAMILIES["Qwen 3"], folder / "causal")
    (folder / "pool.txt").write_text("w99\nw98\n", encoding="utf-8")
    return cli_in(folder)


def filled(texts, folder):
    return [text.replace("{folder}", folder).replace("{words}", WORDS) for text in texts]


def lines(text):
    """Lines without the rows of tables and the space around titles."""
    return [line.strip() for line in text.splitlines() if line.strip() and line[0] not in "┏┃┡│├└"]


def assert_lines(found, expected):
    assert len(found) == len(expected), found
    for line, pattern in zip(found, expected, strict=True):
        assert re.fullmatch(pattern, line), (line, pattern)


@pytest.mark.slow
@pytest.mark.parametrize("command", CASES)
def test_lines_of_a_command(here, command):
    arguments, results, said, _, _ = CASES[command]
    folder = f"{command}-plain"
    out, err = here(command, *filled(arguments, folder))
    assert_lines(lines(out), filled(results, folder))
    assert_lines(lines(err), filled(said, folder))
    assert "┃" in out or command in ("select", "export", "report")


@pytest.mark.slow
@pytest.mark.parametrize("command", CASES)
def test_a_quiet_command_gives_one_json_document(here, command):
    arguments, _, _, warned, keys = CASES[command]
    out, err = here(command, *filled(arguments, f"{command}-json"), "--json", "--quiet")
    assert keys <= json.loads(out).keys()
    assert_lines(lines(err), warned)


@pytest.mark.slow
def test_quiet_is_taken_before_a_command_and_after_it(here):
    arguments, results, _, warned, _ = CASES["train"]
    before = here("--quiet", "train", *filled(arguments, "before"))
    after = here("train", *filled(arguments, "after"), "--quiet")
    for name, (out, err) in (("before", before), ("after", after)):
        assert_lines(lines(out), filled(results, name))
        assert_lines(lines(err), warned)
    log = (here.folder / "after/log.txt").read_text(encoding="utf-8")
    assert_lines(lines(log), filled([*LOG[:-1], *SCORES, LOG[-1], *END], "after"))


@pytest.mark.slow
def test_json_has_stdout_to_itself(here):
    """What train says goes to standard error, its tables included; a mistake is one sentence there."""
    out, err = here("train", *filled(CASES["train"][0], "alone"), "--json")
    result = json.loads(out)
    assert (result["folder"], result["steps"]) == ("alone", 2)
    assert result["after"]["dev"].keys() == result["before"]["dev"].keys() == {"token_accuracy"}
    assert "Before and after" in err
    assert here("evaluate", "nowhere", "--json", code=2) == ("", "fangyan: nowhere: no such run\n")


@pytest.mark.slow
@pytest.mark.ranks
def test_one_rank_of_two_speaks(here):
    arguments = (*RECIPE, "run_dir=ranks", "train.batch_tokens=512")
    out, err = here("train", *arguments, "--json", ranks=2)
    assert json.loads(out)["steps"] == 1
    assert len(re.findall("^before  dev", err, re.MULTILINE)) == 1


def test_every_command_is_quiet_and_has_json():
    names = {function.__name__.replace("_", "-") for function in COMMANDS} | {"init", "train"}
    commands = get_command(app).commands
    assert commands.keys() == names
    for name, command in commands.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert "--quiet" in options, name
        assert "--json" in options or name in STREAMS, name
        assert name in CASES or name in STREAMS, f"{name}: no lines of it are known here"
        assert f"`fangyan {name}" in PAGE.read_text(encoding="utf-8")
