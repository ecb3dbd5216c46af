"""A search: what is refused, what is tried and pruned, what a kill leaves, and what is never read."""

import gc
import importlib.util
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from fangyan.errors import UserError
from fangyan.recipe import load_recipe
from fangyan.training.run_folder import check_same_recipe
from fangyan.training.tune import study
from fangyan.training.tune.fields import best_recipe, check_spaces, trial_recipe
from fangyan.training.tune.search import Search, tune
from fangyan.training.tune.study import Study
from forked_command import ForkedCommand

TUNE = "tune={optimizer.lr: {log: [1e-6, 1e-2]}, model.hidden_dropout: {uniform: [0.0, 0.3]}}"
CITIES = "港九深廣佛中東西南北沙大荃屯元青"
# 16 sentences that differ, and four steps per epoch. By the seed, the second trial's learning rate is best.
SMALL = (
    *("data.format=conll", "data.train=few.conll", "data.dev=few.conll", "data.tokens=words"),
    *("train.epochs=3", "train.batch_tokens=28", "train.checkpoint_every=null", "train.token_masking=0.0"),
    *("train.log_every=1", "train.metric=token_accuracy", "schedule.warmup=0.0", "seed=77"),
    *("model.path=scratch", "model.size=tiny", "optimizer.layer_decay=1.0"),
)


def prune_early():
    """Let the second trial be pruned already, in the process of a command."""
    study.UNPRUNED = 1


def count_tensors():
    """Let a search in this process write down the numbers that it holds before each trial."""
    train = Search._train

    def counted(search, recipe):
        numbers = sum(item.numel() for item in gc.get_objects() if isinstance(item, torch.Tensor))
        with Path("numbers").open("a", encoding="utf-8") as file:
            file.write(f"{numbers}\n")
        return train(search, recipe)

    Search._train = counted


def arguments(*overrides, trials, run="run"):
    return ["tune", "cantonese-pos", *SMALL, f"run_dir={run}", TUNE, *overrides, "--trials", str(trials)]


def start(cli, *arguments, before=prune_early):
    return ForkedCommand(cli.server, cli.folder, arguments, before=[before])


def write_data(folder):
    text = "".join(f"我\tO\n住\tO\n{city}\tB-LOC\n\n" for city in CITIES)
    (folder / "few.conll").write_text(text, encoding="utf-8")


def trials_of(cli, run="run"):
    """All that is known of trials but their time."""
    found = json.loads((cli.folder / run / "trials.json").read_text(encoding="utf-8"))["trials"]
    return [{key: value for key, value in trial.items() if key != "minutes"} for trial in found]


@pytest.fixture(scope="module")
def searched(tmp_path_factory, cli_in):
    """A search that tests may read but not change; its test split is a file that is not there."""
    cli = cli_in(tmp_path_factory.mktemp("searched"))
    write_data(cli.folder)
    command = start(cli, *arguments("data.test=absent.conll", trials=3))
    cli.out, err = command.communicate(timeout=200)
    assert command.returncode == 0, err
    assert not re.search(r"\[W|Warning|Traceback", err), err
    return cli


@pytest.mark.parametrize(
    ("spaces", "sentence"),
    [
        ("null", "tune: the recipe has none, expected what to try by field, such as tune: {optimizer.lr:"),
        ("{}", "tune: the recipe has none"),
        ("5", "tune: input should be a valid dictionary, found 5"),
        ("{optimizer.lr: 5}", "tune.optimizer.lr: found 5, expected {log: [1.0e-5, 1.0e-3]}, {uniform:"),
        ("{optimizer.lr: {grid: [1, 2]}}", "tune.optimizer.lr: found {'grid': [1, 2]}, expected {log:"),
        ("{optimizer.lr: {log: [1e-5, 1e-3], int: [1, 2]}}", "tune.optimizer.lr: found {"),
        (
            "{optimizer.lr: {log: [1e-3, 1e-5]}}",
            "found [0.001, 1e-05], expected two numbers, the smaller first",
        ),
        ("{optimizer.lr: {log: [1e-3]}}", "found [0.001], expected two numbers, the smaller first"),
        ("{optimizer.lr: {uniform: [.nan, 1]}}", "found [nan, 1.0], expected two numbers"),
        ("{optimizer.lr: {uniform: [0, .inf]}}", "found [0.0, inf], expected two numbers"),
        ("{optimizer.lr: {log: [0, 1e-3]}}", "found {'log': [0, 0.001]}, expected bounds above 0 for log"),
        ("{optimizer.lr: {log: [a, b]}}", "tune.optimizer.lr: found ['a', 'b'], expected two numbers"),
        ("{train.epochs: {int: [1.5, 3]}}", "tune.train.epochs: found [1.5, 3], expected two whole numbers"),
        ("{train.epochs: {log_int: [0, 3]}}", "expected bounds above 0 for log_int"),
        ("{engine.precision: {choice: [fp32]}}", "found ['fp32'], expected two values or more"),
        ("{engine.precision: {choice: [fp32, fp32]}}", "found 'fp32' twice, expected values that differ"),
        (
            "{optimizer.rate: {log: [1e-5, 1e-3]}}",
            "tune.optimizer.rate=1e-05: optimizer.rate: unknown key of",
        ),
        ("{optimiser: {choice: [1, 2]}}", "tune.optimiser=1: optimiser: unknown key; expected one of name,"),
        ("{optimizer.lr.x: {int: [1, 2]}}", "tune.optimizer.lr.x=1: lr is 0.0015, expected a section"),
        ("{train.epochs: {int: [0, 8]}}", "tune.train.epochs=0: train.epochs: input should be greater"),
        (
            "{train.epochs: {uniform: [2, 8]}}",
            "tune.train.epochs=2.0: train.epochs: input should be a valid int",
        ),
        ("{model.hidden_dropout: {uniform: [0, 1]}}", "model.hidden_dropout: input should be less than 1"),
        ("{engine.precision: {choice: [fp32, fp8]}}", "tune.engine.precision='fp8': engine.precision: input"),
        ("{adaptation.rank: {int: [4, 8]}}", "adaptation.rank: unknown key of full"),
        *(
            (f"{{{field}: {{int: [1, 2]}}}}", f"tune.{field}: found a field that is the same in all trials")
            for field in (
                "tune.x",
                "tune",
                "name",
                "run_dir",
                "seed",
                "data.test",
                "data",
                "train.metric",
                "train",
            )
        ),
        (
            "{optimizer: {choice: [{name: sgd}, {name: adamw}]}, optimizer.lr: {log: [1e-5, 1e-3]}}",
            "tune.optimizer.lr: found it beside optimizer, which holds it, expected one of both",
        ),
    ],
)
def test_check_spaces_with_a_mistake(spaces, sentence):
    with pytest.raises(UserError) as error:
        check_spaces(load_recipe("cantonese-pos", [f"tune={spaces}"]))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_recipes_of_a_search_are_the_users_but_for_the_values(tmp_path):
    spaces = "{optimizer: {choice: [{name: sgd, lr: 0.1}, {name: adamw}]}, train.epochs: {int: [2, 8]}}"
    recipe = load_recipe("cantonese-pos", [f"tune={spaces}", "data.test=0.1", "data.dev=0.1"])
    values = {"optimizer": {"name": "sgd", "lr": 0.1}, "train.epochs": 3}
    trial = trial_recipe(recipe, values, tmp_path / "trial")
    assert (trial.optimizer.name, trial.optimizer.lr, trial.train.epochs) == ("sgd", 0.1, 3)
    assert (trial.folder, trial.tune, trial.data.test) == (tmp_path / "trial", None, 0.1)
    path = tmp_path / "best.yaml"
    path.write_text(best_recipe(recipe, values, tmp_path / "best"), encoding="utf-8")
    assert load_recipe(path) == trial.model_copy(update={"run_dir": str(tmp_path / "best")})
    assert "tune" not in path.read_text(encoding="utf-8")
    # Written with all defaults, and read again, it is the same.
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(path).tune == check_spaces(recipe)
    # A run with a section tune resumes without it, and the other way round.
    check_same_recipe(recipe.model_copy(update={"tune": None}), path)
    with pytest.raises(UserError, match="the run has seed=0, the recipe 1"):
        check_same_recipe(recipe.model_copy(update={"seed": 1}), path)


def test_tune_without_optuna(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package optuna, .* run: pip install optuna$"):
        tune(load_recipe("cantonese-pos", [TUNE]), 1)


def test_tune_goes_on_where_a_trial_cannot_train(tmp_path, monkeypatch):
    """On a GPU that is too small, or of values that are right each, and wrong together."""
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)

    def train(recipe, *_, **options):
        raise torch.OutOfMemoryError(f"CUDA out of memory at stage {recipe.engine.zero_stage}\nand more")

    monkeypatch.setattr("fangyan.training.tune.search.train", train)
    spaces = "tune={engine.zero_stage: {choice: [0, 1]}, engine.offload: {choice: [none, optimizer]}}"
    recipe = load_recipe("cantonese-pos", [*SMALL, "data.test=null", "engine.zero_stage=1", spaces])
    with pytest.raises(UserError, match="tune: no trial of runs/cantonese-pos came to its last epoch"):
        tune(recipe, 6)
    found = json.loads((tmp_path / "runs/cantonese-pos/trials.json").read_text(encoding="utf-8"))["trials"]
    assert len(found) == 6
    for trial in found:
        stage, offload = trial["values"].values()
        together = f"tune.engine.zero_stage={stage}, tune.engine.offload='{offload}': engine.zero_stage is 0"
        is_refused = (stage, offload) == (0, "optimizer")
        assert trial["reason"].startswith(together if is_refused else f"CUDA out of memory at stage {stage}")
    assert len({trial["reason"] for trial in found}) == 3


def test_tune_takes_no_folder_of_others_and_a_recipe_may_change_until_it_trains(tmp_path, monkeypatch):
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "study.db").write_text("mine", encoding="utf-8")
    recipe = load_recipe("cantonese-pos", [*SMALL, "data.test=null", TUNE, "model={path: absent}"])
    with pytest.raises(
        UserError, match="run_dir: mine holds files but no search, expected an empty or a new"
    ):
        tune(recipe.model_copy(update={"run_dir": "mine"}), 1)
    assert (tmp_path / "mine" / "study.db").read_text(encoding="utf-8") == "mine"
    for model in ("absent", "missing"):
        with pytest.raises(UserError, match=f"model.path: .*'{model}'"):
            tune(recipe.model_copy(update={"model": recipe.model.model_copy(update={"path": model})}), 1)


def test_study_of_a_damaged_file(tmp_path):
    (tmp_path / "study.db").write_text("no database, whatever its name says", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"study.db: the search cannot be kept there \(file is not a database\)"
    ):
        Study(tmp_path / "study.db", {}, 0, True)


def search(path, seed, trials, interrupt):
    """A search whose scores are a formula; ``interrupt`` opens it anew in the middle of each trial."""
    spaces = check_spaces(load_recipe("cantonese-pos", [TUNE]))
    found = Study(path, spaces, seed, greater_is_better=False)
    while (draw := found.next(trials)) is not None:
        score = draw.values["model.hidden_dropout"]
        goes_on = found.report(1, score)
        if interrupt:  # after the report, before it was heeded
            found.close()
            found = Study(path, spaces, seed, greater_is_better=False)
            assert found.next(trials) == draw
            assert found.report(1, score) == goes_on
        goes_on = goes_on and found.report(2, score / 2)
        found.finish(goes_on)
    records, best = found.trials(), found.best()
    found.close()
    return [(trial.values, trial.state, trial.epochs, trial.score) for trial in records], best


def test_study_that_is_interrupted_draws_and_prunes_what_another_does(tmp_path):
    whole, best = search(tmp_path / "whole.db", 3, 12, interrupt=False)
    parts, _ = search(tmp_path / "parts.db", 3, 7, interrupt=True)
    others, _ = search(tmp_path / "others.db", 4, 2, interrupt=False)
    assert parts == whole[:7]
    assert others[0] != whole[0]
    states = [state for _, state, _, _ in whole]
    assert states[: study.UNPRUNED] == ["complete"] * study.UNPRUNED
    assert "pruned" in states
    scores = [score for _, state, _, score in whole if state == "complete"]
    assert best.score == min(scores)
    # From the eleventh on, draws heed the scores.
    dropouts = [values["model.hidden_dropout"] for values, *_ in whole]
    assert max(dropouts[10:]) < max(dropouts[:10])


def test_study_goes_on_to_more_trials(tmp_path):
    few, _ = search(tmp_path / "study.db", 0, 2, interrupt=False)
    more, _ = search(tmp_path / "study.db", 0, 4, interrupt=False)
    assert len(more) == 4
    assert more[:2] == few


@pytest.mark.slow
def test_tune_keeps_the_best_run_and_the_metrics_of_all(searched):
    trials = trials_of(searched)
    assert [trial["state"] for trial in trials] == ["complete", "complete", "pruned"]
    folder = searched.folder / "run"
    best = 1
    assert trials[best]["score"] > trials[0]["score"]
    for number, trial in enumerate(trials):
        run = folder / f"trial-{number:04d}"
        assert {"metrics.jsonl", "recipe.yaml"} <= {path.name for path in run.iterdir()}
        for large in ("checkpoints", "model", "splits"):
            assert (run / large).exists() == (number == best)
        assert len(trial["epochs"]) == (3 if trial["state"] == "complete" else 1)
        assert trial["score"] == max(trial["epochs"].values())
    assert (folder / "tune.png").stat().st_size > 10_000
    assert f"the best trial's run: run/trial-{best:04d}; its recipe: run/best.yaml" in searched.out
    assert (
        sum(path.stat().st_size for path in folder.rglob("*") if f"{best:04d}" not in str(path)) < 1_000_000
    )


@pytest.mark.slow
def test_tune_again_keeps_what_is_finished(searched):
    log = searched.folder / "run" / "trial-0000" / "log.txt"
    before = log.stat().st_mtime_ns
    out, err = searched(*arguments("data.test=absent.conll", trials=3))
    assert out == searched.out[-len(out) :]
    assert "epoch" not in err
    assert log.stat().st_mtime_ns == before
    _, err = searched(*arguments("data.test=absent.conll", "optimizer.weight_decay=0.1", trials=3), code=2)
    assert "tune.yaml: the run has optimizer.weight_decay=0.01, the recipe 0.1" in err
    other = ("data.test=absent.conll", "tune={optimizer.lr: {log: [1e-6, 1e-2]}}")
    _, err = searched(*arguments(*other, trials=3), code=2)
    assert "the search has tune.model.hidden_dropout={'uniform': [0.0, 0.3]}, the recipe None" in err
    _, err = searched("train", "cantonese-pos", *SMALL, "data.test=null", "run_dir=run", code=2)
    assert "run_dir: run holds files but no run" in err


@pytest.mark.slow
def test_best_recipe_trains_and_is_tested(searched):
    """To the score of the best trial, which had no test split to read."""
    (searched.folder / "absent.conll").write_bytes((searched.folder / "few.conll").read_bytes())
    try:
        searched("train", "run/best.yaml")
    finally:
        (searched.folder / "absent.conll").unlink()
    last = {r["split"]: r for r in searched.records("run/best") if r.get("split", "").endswith("-best")}
    assert last["test-best"]["token_accuracy"] == last["dev-best"]["token_accuracy"]
    found = json.loads((searched.folder / "run" / "trials.json").read_text(encoding="utf-8"))
    assert last["dev-best"][found["metric"]] == found["trials"][found["best"]]["score"]


@pytest.mark.slow
def test_tune_resumes_a_trial_that_was_killed(cli, searched):
    """In the middle of its second epoch: the same values, losses and scores as without."""
    write_data(cli.folder)
    command = arguments("data.test=absent.conll", trials=2)
    process = start(cli, *command)
    metrics = cli.folder / "run" / "trial-0000" / "metrics.jsonl"
    while not (metrics.exists() and '"step": 6' in metrics.read_text(encoding="utf-8")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    process = start(cli, *command)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "resuming run/trial-0000/checkpoints/step-000004 at step 4" in err
    assert trials_of(cli) == trials_of(searched)[:2]
    assert cli.losses("run/trial-0000") == searched.losses("run/trial-0000")
    assert {path.name for path in (cli.folder / "run").glob("trial-*")} == {"trial-0000", "trial-0001"}


@pytest.mark.slow
@pytest.mark.ranks
def test_tune_on_two_ranks(cli, searched):
    """Each trains with what the first has drawn. A test split that is a part of train is not scored."""
    write_data(cli.folder)
    cli(*arguments("data.test=0.25", "train.epochs=1", trials=2), ranks=2)
    found, expected = trials_of(cli), trials_of(searched)
    assert [trial["values"] for trial in found] == [trial["values"] for trial in expected[:2]]
    for number in (0, 1):
        folder = cli.folder / "run" / f"trial-{number:04d}"
        assert "examples train 12, dev 16; " in (folder / "log.txt").read_text(encoding="utf-8")
        assert {record.get("split") for record in cli.records(folder)} == {None, "dev", "dev-best"}


@pytest.mark.slow
def test_tune_of_values_that_do_not_train(cli):
    write_data(cli.folder)
    spaces = "tune={optimizer.lr: {choice: [999.0, 1000.0]}}"
    _, err = cli(*arguments(spaces, "data.test=null", "optimizer.weight_decay=1e3", trials=1), code=2)
    assert "tune: no trial of run came to its last epoch, as run/trials.json says; expected values" in err
    (trial,) = trials_of(cli)
    assert trial["state"] == "pruned"
    assert trial["reason"].startswith("optimizer.lr: the loss is nan at step")


@pytest.mark.slow
def test_tune_lets_each_model_go(cli):
    """At ZeRO stage 3, of which DeepSpeed keeps the engine and all that it holds."""
    write_data(cli.folder)
    options = ("data.test=null", "train.epochs=1", "engine.zero_stage=3")
    process = start(cli, *arguments(*options, trials=2), before=count_tensors)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    numbers = [int(line) for line in (cli.folder / "numbers").read_text(encoding="utf-8").split()]
    assert len(numbers) == 2
    assert max(numbers) < 10_000
