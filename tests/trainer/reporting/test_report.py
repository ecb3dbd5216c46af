"""The report without a browser: what is in it, of which run, and what happens where something is missing."""

import json
import shutil
from itertools import pairwise

import pytest
from fangyan.errors import UserError
from fangyan.recipe import Recipe, load_recipe
from fangyan.reporting import write_report
from fangyan.reporting.collect import collect
from fangyan.reporting.predictions import predict_again
from fangyan.training.train import train
from matplotlib.image import imread
from probed_runs import BY_NAME, run_folder
from report_outline import outline


def copied(run, folder):
    ignored = shutil.ignore_patterns("checkpoints", "tensorboard")
    return shutil.copytree(run, folder / "run", ignore=ignored)


def test_a_run_ends_with_its_report(tagger):
    page = outline(tagger / "report.html")
    for section in ("scores", "curves", "by-class", "errors", "sure", "costs", "of-data", "again", "machine"):
        assert section in page.ids
    assert len(set(page.ids)) == len(page.ids)
    assert page.headings[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(page.headings))
    assert f"report: {tagger / 'report.html'}" in (tagger / "log.txt").read_text(encoding="utf-8")
    names = {path.stem for path in (tagger / "report").glob("*.png")}
    assert {"loss", "lr", "dev", "classes", "confusions", "calibration"} <= names
    for path in (tagger / "report").glob("*.png"):
        assert imread(path).std() > 0.02  # something is drawn


def test_errors_are_those_of_the_scores(tagger):
    """As many as the accuracy says, most confused first; probabilities are of what is predicted."""
    records = map(json.loads, (tagger / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    (accuracy,) = (r["token_accuracy"] for r in records if r.get("split") == "test-best")
    examples = (tagger / "splits/test.jsonl").read_text(encoding="utf-8").splitlines()
    tokens = sum(len(json.loads(line)["fields"]["tokens"]) for line in examples)
    errors = [row for row in outline(tagger / "report.html").data["data"] if row["split"] == "test"]
    assert len(errors) == round(tokens * (1 - accuracy / 100))
    assert [row["times"] for row in errors] == sorted((row["times"] for row in errors), reverse=True)
    assert all(row["gold"] != row["predicted"][0] and 0 < row["probability"] <= 1 for row in errors)


def test_predicting_again_is_what_the_run_kept(tagger, tmp_path):
    """As of a run of an earlier version, which kept neither predictions nor facts."""
    run = copied(tagger, tmp_path)
    kept = {path.name: path.read_text(encoding="utf-8") for path in (run / "reports").glob("test-best*")}
    assert len(kept) == 3
    for name in kept:
        (run / "reports" / name).unlink()
    (run / "report/run.json").unlink()
    assert "errors" in outline(write_report(run)).ids  # of dev, whose predictions are there
    predict_again(run, lambda message: None)
    for name, text in kept.items():
        found = (run / "reports" / name).read_text(encoding="utf-8")
        if name.endswith("predictions.jsonl"):
            pairs = zip(text.splitlines(), found.splitlines(), strict=True)
            for left, right in (map(json.loads, pair) for pair in pairs):
                assert left.pop("probability") == pytest.approx(right.pop("probability"), abs=2e-3)
                assert left == right
        elif name == "test-best.json":
            assert found == text
    assert "machine" not in outline(write_report(run)).ids


def test_of_several_metrics_the_first_is_not_said_to_have_picked_the_best(tagger, tmp_path):
    """Where the run kept no facts: a joint F1 may have, whose task is known to the model alone."""
    run = copied(tagger, tmp_path)
    (run / "report/run.json").unlink()
    assert collect(run).metric == "token_accuracy"
    records = (run / "metrics.jsonl").read_text(encoding="utf-8")
    (run / "metrics.jsonl").write_text(
        records.replace('"token_acc', '"joint_f1": 1.0, "token_acc'), encoding="utf-8"
    )
    assert collect(run).metric is None
    assert "token accuracy on" not in write_report(run).read_text(encoding="utf-8")
    recipe = (run / "recipe.yaml").read_text(encoding="utf-8")
    (run / "recipe.yaml").write_text(recipe.replace("metric: auto", "metric: joint_f1"), encoding="utf-8")
    assert collect(run).metric == "joint_f1"


@pytest.mark.parametrize(
    "name", ["one class", "several classes", "a number of pairs", "spans or none, causal", "answers"]
)
def test_other_tasks_have_what_is_of_them(tmp_path, name):
    """Of runs that are not trained: nothing but predictions, and of an assistant not even these."""
    run = run_folder(BY_NAME[name], tmp_path)
    predict_again(run, lambda message: None)
    page = outline(write_report(run))
    assert ("errors" in page.ids) == (name != "answers")
    assert ("sure" in page.ids) == ("confusions-title" in page.ids) == (name == "one class")
    assert ("classes-title" in page.ids) == (name in ("one class", "several classes"))
    for row in page.data.get("data", ()):
        assert any(name in row for name in ("text", "above", "left", "right"))
    if name == "a number of pairs":
        far = [abs(float(row["gold"][0]) - float(row["predicted"][0][0])) for row in page.data["data"]]
        assert far == sorted(far, reverse=True)


def test_unfinished_run_shows_what_there_is(tagger, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copytree(tagger / "report", run / "report")
    shutil.copy(tagger / "recipe.yaml", run)
    assert "The run has just begun" in write_report(run).read_text(encoding="utf-8")
    lines = (tagger / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    (run / "metrics.jsonl").write_text("\n".join([*lines[:5], '{"kind": "tr']), encoding="utf-8")
    text = write_report(run).read_text(encoding="utf-8")
    assert "The run has not ended" in text
    assert "curves" in outline(run / "report.html").ids
    # What is written where speed and time are followed.
    speed = [
        {"kind": "speed", "step": i, "epoch": 0, "tokens_per_second": 9e3, "memory_gb": 1.5} for i in (1, 2)
    ]
    time = {
        "kind": "time",
        "step": 2,
        "epoch": 1,
        "steps_s": 6,
        "evaluation_s": 2,
        "checkpoint_s": 1,
        "other_s": 1,
    }
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n" + "\n".join(map(json.dumps, [*speed, time])))
    text = write_report(run).read_text(encoding="utf-8")
    assert "steps: 60%; evaluation: 20%; checkpoints: 10%; all else: 10% of 10 seconds." in text
    assert {"speed-title", "memory-title", "time-title"} <= set(outline(run / "report.html").ids)


def test_damage_is_one_sentence(tagger, tmp_path):
    with pytest.raises(UserError, match="no run folder, expected one with its recipe.yaml"):
        write_report(tmp_path)
    run = copied(tagger, tmp_path)
    for name, content, expected in (
        ("report/run.json", '{"started": 1}', "run.json: damaged at"),
        ("reports/test-best.json", "[", "test-best.json: damaged"),
        ("reports/test-best-predictions.jsonl", '{"gold": []}', "predictions.jsonl:1: damaged at predicted"),
        ("reports/dev-best-predictions.jsonl", "", "0 predictions, expected 40"),
        ("reports/dev-best-calibration.json", "{}", "calibration.json: damaged at count"),
        ("splits/test.jsonl", "nonsense", "test.jsonl:1: damaged, expected an example"),
    ):
        whole = (run / name).read_text(encoding="utf-8")
        (run / name).write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=expected):
            write_report(run)
        (run / name).write_text(whole, encoding="utf-8")
    write_report(run)


def test_failure_is_a_sentence_of_the_log(tagger, tmp_path):
    """A folder stands where the page would: the run ends as well as without."""
    content = load_recipe(tagger / "recipe.yaml").model_dump(mode="json")
    recipe = Recipe.model_validate(content | {"name": "other", "run_dir": str(tmp_path / "run")})

    def stand_in_the_way(epoch, metrics):
        (tmp_path / "run/report.html").mkdir(exist_ok=True)
        return True

    result = train(recipe, on_epoch=stand_in_the_way)
    assert result.after
    assert (tmp_path / "run/model/model.safetensors").is_file()
    log = (tmp_path / "run/log.txt").read_text(encoding="utf-8")
    assert "no report, the run goes on: " in log
    assert "report.html cannot be written" in log
