"""Two runs on the same examples: of every task, as a command, and what is refused."""

import json

import fangyan
import pytest
import torch
from fangyan.analysis.compare import compare
from fangyan.errors import UserError
from probed_runs import BY_NAME, TAGGER, run_folder
from safetensors.torch import load_file, save_file

CASES = [TAGGER, *BY_NAME.values()]


def quiet(message):
    raise AssertionError(message)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_compare_of_every_task(tmp_path, case):
    """The scores are those of evaluate, and a run does not differ from itself."""
    left, right = (run_folder(case, tmp_path, name) for name in ("a", "b"))
    weights = load_file(right / "model" / "model.safetensors")
    torch.manual_seed(1)
    noisy = {
        name: weight + 0.3 * torch.randn_like(weight) if weight.is_floating_point() else weight
        for name, weight in weights.items()
    }
    save_file(noisy, right / "model" / "model.safetensors", {"format": "pt"})
    found = compare(left, right, say=quiet, resamples=100)
    for name, difference in found.metrics.items():
        for run, value in ((left, difference.left), (right, difference.right)):
            # Texts one at a time and in batches: rounding apart.
            assert value == pytest.approx(fangyan.evaluate(run, answers=0)[name], rel=1e-4)
        assert difference.difference == difference.right - difference.left
    json.dumps(found.as_json())
    for difference in compare(left, left, say=quiet, resamples=100).metrics.values():
        assert (difference.difference, difference.p) == (0.0, 1.0)


def test_compare_as_a_command(cli_in, tmp_path):
    left, right = (run_folder(TAGGER, tmp_path, name, seed) for name, seed in (("a", 0), ("b", 1)))
    cli = cli_in(tmp_path)
    out, _ = cli("compare", "a", "b", "--resamples", "200")
    for expected in ("token accuracy", "95% interval", "the dev split of both: resampled by 10 examples"):
        assert expected in " ".join(out.split())
    out, err = cli("compare", "a", "b", "--data", "train.jsonl", "--json")
    expected = compare(left, right, [str(tmp_path / "train.jsonl")]).as_json()
    expected |= {"runs": ["a", "b"], "data": "train.jsonl"}
    assert json.loads(out) == json.loads(json.dumps(expected))
    assert err == ""


def test_compare_of_other_label_sets_says_so(tmp_path):
    left, right = (run_folder(TAGGER, tmp_path, name) for name in ("a", "b"))
    path = right / "model" / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["id2label"]["0"] = "NEW"
    content["label2id"] = {label: int(i) for i, label in content["id2label"].items()}
    path.write_text(json.dumps(content), encoding="utf-8")
    said = []
    found = compare(left, right, say=said.append, resamples=100)
    assert found.notes[0] == "2 labels are of one model alone, such as NEW; each is scored with its own"
    assert "tags that the model has not learned are scored as errors: T0" in said[0]
    assert said[0].startswith(f"{right}: ")


def test_compare_of_runs_that_do_not_compare(tmp_path):
    tagger, texts = run_folder(TAGGER, tmp_path / "t"), run_folder(BY_NAME["one class"], tmp_path / "c")
    numbers = run_folder(BY_NAME["several classes"], tmp_path / "n")
    with pytest.raises(
        UserError, match="task is token_classification and sequence_classification, expected mod"
    ):
        compare(tagger, texts)
    with pytest.raises(
        UserError, match="metrics is macro_f1, weighted_f1, accuracy and macro_f1, .*micro_f1"
    ):
        compare(texts, numbers)
    dev = tagger / "splits" / "dev.jsonl"
    other = run_folder(TAGGER, tmp_path / "t", "other")
    lines = dev.read_text(encoding="utf-8").splitlines(keepends=True)
    (other / "splits" / "dev.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(
        UserError, match="10 and 9 examples of the splits kept with the runs, expected the same"
    ):
        compare(tagger, other)
    (other / "splits" / "dev.jsonl").write_text("".join(lines[::-1]), encoding="utf-8")
    with pytest.raises(
        UserError, match="differ at dev.jsonl:1 and dev.jsonl:10, expected the same, or --data"
    ):
        compare(tagger, other)
    (other / "splits" / "test.jsonl").write_text("".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match="one has no test split, expected --data with files for both"):
        compare(tagger, other)
    with pytest.raises(
        UserError, match="compare needs a run folder with its recipe.yaml, found a model alone"
    ):
        compare(tagger, other / "model")
    with pytest.raises(UserError, match="none: no such run"):
        compare(tmp_path / "none", tagger)


def test_compare_of_masks_of_other_rates(tmp_path):
    left = run_folder(BY_NAME["hidden words"], tmp_path, "a")
    right = run_folder(BY_NAME["hidden words"], tmp_path, "b", task={"mask_rate": 0.4})
    with pytest.raises(UserError, match="mask_rate is 0.2 and 0.4, expected models that are scored alike"):
        compare(left, right)


def test_compare_of_a_run_that_is_told_the_data_set(tmp_path):
    """The name of the data set before a text is how the one reads it, and the texts are the same."""
    case = BY_NAME["one class"]
    runs = []
    for name, prefix in (("a", True), ("b", False)):
        recipe = case.recipe(tmp_path)
        own = {**recipe["data"], "name": "w70", "columns": {"text": "text", "label": "label"}}
        data = {"format": "sources", "sources": [own], "prefix": prefix}
        runs.append(run_folder(case, tmp_path, name, replaced={"data": data}))
    found = compare(*runs, resamples=100)
    assert found.examples == 10
    found = compare(*runs, data=[str(tmp_path / "train.jsonl")], source="w70", resamples=100)
    assert found.examples == 120
    with pytest.raises(UserError, match="--source is missing, expected one of w70"):
        compare(*runs, data=[str(tmp_path / "train.jsonl")])
