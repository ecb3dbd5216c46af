"""Every part of a probe on every task, as a command, its files, and what is refused."""

import json
import math
import os
from xml.etree import ElementTree

import fangyan
import pytest
from fangyan.analysis.groups import file_columns
from fangyan.analysis.options import Options
from fangyan.analysis.probe import as_json, probe
from fangyan.data.formats.chat import Chat
from fangyan.errors import UserError
from probed_runs import BY_NAME, TAGGER, run_folder
from small_disk import fill, mounted

CASES = [TAGGER, *BY_NAME.values()]
LABELS = ("tags", "one class", "several classes", "a number of pairs", "spans")


def finite(value):
    """Whether all numbers of a report are such as JSON has."""
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_probe_of_every_task(tmp_path, case):
    run = run_folder(case, tmp_path)
    terms = tmp_path / "terms.tsv"
    terms.write_text("tens\ttwenties\nw10\tw20\nw11\tw21\nabba\tdeed\n", encoding="utf-8")
    said = []
    found = probe(run, Options(terms=terms, resamples=100, data=[str(tmp_path / "train.jsonl")]), said.append)
    predicts = case.task["name"] not in ("masked_lm", "instruction")
    has_class = case.name.startswith(("tags", "one class", "words for classes"))
    assert found.keys() == {"groups"} | ({"robustness", "terms"} if predicts else set()) | (
        {"calibration"} if has_class else set()
    )
    assert len(said) == 2 * (not predicts) + (not has_class)
    # What is scored is what evaluate scores.
    metrics = fangyan.evaluate(run, [str(tmp_path / "train.jsonl")], answers=0)
    (metric,) = {report.metric for report in found.values() if hasattr(report, "metric")}
    if predicts:
        assert found["robustness"].perturbations[0].metrics[metric].left == pytest.approx(metrics[metric])
    assert sum(group.examples for group in found["groups"].columns["length"]) == len(
        (tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines()
    )
    for part, report in found.items():
        content = json.loads((run / "probe" / f"{part}.json").read_text(encoding="utf-8"))
        assert content == json.loads(json.dumps(as_json(report)))
        assert finite(content)
        assert (run / "probe" / f"{part}.svg").is_file() == bool(report.tables())


def test_groups_are_scored_as_files_of_their_own(tmp_path):
    case = BY_NAME["one class"]
    run = run_folder(case, tmp_path)
    records = case.records()
    for i, record in enumerate(records):
        record["speaker"] = ["A", "B", "C"][i % 7 % 3]
    files = {}
    for name in ("A", "B", "C", ""):
        files[name] = str(tmp_path / f"of{name}.jsonl")
        lines = [json.dumps(record) for record in records if not name or record["speaker"] == name]
        (tmp_path / f"of{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = probe(run, Options(data=[files[""]], group_by=["speaker"], parts=["groups"], resamples=100))
    groups = found["groups"].columns["speaker"]
    assert [group.value for group in groups] == ["A", "B", "C"]
    for group in groups:
        assert group.metrics == pytest.approx(fangyan.evaluate(run, [files[group.value]]))
        low, high = group.intervals["accuracy"]
        assert low <= group.metrics["accuracy"] <= high
    with pytest.raises(
        UserError, match="--group-by age: no example has it, expected one of text, label, speaker"
    ):
        probe(run, Options(data=[files[""]], group_by=["age"], parts=["groups"]))


def test_groups_by_a_column_with_any_name_and_values(tmp_path):
    """One that is called as our own, names with which XML or a plot could not do."""
    case = BY_NAME["one class"]
    run = run_folder(case, tmp_path)
    values = ["a\x08", "\x1b[31m$x$", "我" * 3000, "<b>&\nשלום"]
    records = [record | {"length": values[i % 4]} for i, record in enumerate(case.records())]
    path = tmp_path / "named.jsonl"
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    found = probe(run, Options(data=[str(path)], group_by=["length"], parts=["groups"], resamples=100))
    assert {group.value for group in found["groups"].columns["length"]} == set(values)
    picture = (run / "probe" / "groups.svg").read_text(encoding="utf-8")
    texts = [element.text for element in ElementTree.fromstring(picture).iter() if element.text]
    for name in ("a\\x08 (30)", "\\x1b[31m$x$ (30)", "我" * 40 + "…", "<b>& שלום (30)"):
        assert name in texts


def test_files_of_one_name_whose_lines_cannot_be_told_apart(tmp_path):
    """CHAT's sources have no folder: what the one file says must not be taken for the other's."""
    texts = [f"@Begin\n*{name}:\thou2 .\n%mor:\tadj|hou2 .\n@End\n" for name in ("AAA", "BBB")]
    for folder, text in zip(("a", "b"), texts, strict=True):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.cha").write_text(text, encoding="utf-8")
    config = Chat(train="x.cha")
    files = [str(tmp_path / folder / "x.cha") for folder in ("a", "b")]
    examples = config.read_files(files)
    with pytest.raises(UserError, match=r"--group-by: x.cha:2 is in two files of --data, expected files who"):
        file_columns(examples, config, files, ["speaker"])
    assert file_columns(examples[:1], config, files[:1] * 2, ["speaker"]) == {"speaker": ["AAA"]}


def label_dev(run, wrong):
    """Label dev as the model does, but for the first few."""
    path = run / "splits" / "dev.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = fangyan.load(run).predict([record["fields"]["text"] for record in records])
    for i, (record, each) in enumerate(zip(records, found, strict=True)):
        other = next(label for label in each.probabilities if label != each.label)
        record["fields"]["label"] = other if i < wrong else each.label
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def test_a_temperature_that_dev_does_not_fit_is_not_kept(tmp_path):
    """Where all of dev is right, the colder the better: the bound says nothing."""
    run = run_folder(BY_NAME["one class"], tmp_path)
    label_dev(run, wrong=0)
    report = probe(run, Options(parts=["calibration"]))["calibration"]
    assert "dev fits no temperature: 0.05 is the bound" in report.notes[1]
    with pytest.raises(UserError, match="--store-temperature: dev fits none, 0.05 is a bound"):
        probe(run, Options(parts=["calibration"], store_temperature=True))
    assert (
        "temperature"
        not in json.loads((run / "model" / "config.json").read_text(encoding="utf-8"))["fangyan"]
    )


def test_probe_as_a_command(cli_in, tmp_path):
    run = run_folder(BY_NAME["one class"], tmp_path)
    label_dev(run, wrong=3)
    (tmp_path / "map.tsv").write_text("w1\tW1\nw2\tv2\n", encoding="utf-8")
    cli = cli_in(tmp_path)
    arguments = ["probe", "run", "--data", "train.jsonl", "--resamples", "100"]
    out, err = cli(*arguments, "--mapping", "map.tsv")
    for expected in ("Robustness", "map.tsv", "By length", "Calibration"):
        assert expected in out
    assert (
        "nothing in the data to change, so not scored: swap, no diacritics, no tone numbers, lower case"
        in err
    )
    assert "JSON and pictures: run/probe" in err
    as_text, _ = cli(*arguments, "--mapping", "map.tsv", "--json", "--seed", "0")
    written = {
        part: json.loads((run / "probe" / f"{part}.json").read_text(encoding="utf-8"))
        for part in ("robustness", "groups", "calibration")
    }
    assert json.loads(as_text) == written
    before = fangyan.load(run).predict(["w10 w11"])[0].probabilities
    _, err = cli(*arguments, "--part", "calibration", "--store-temperature")
    assert "is kept with the model" in err
    assert fangyan.load(run).predict(["w10 w11"])[0].probabilities != before
    # It is fitted on dev again as if none was kept.
    assert (
        json.loads(cli(*arguments, "--json", "--part", "calibration")[0])["calibration"]
        == written["calibration"]
    )


def test_a_picture_of_what_is_asked_no_more_goes(tmp_path):
    run = run_folder(BY_NAME["one class"], tmp_path)
    probe(run, Options(parts=["saliency"], texts=["w10 w11", "w12"]))
    probe(run, Options(parts=["saliency"], texts=["w10 w11"]))
    assert sorted(path.name for path in (run / "probe").iterdir()) == ["saliency-0.svg", "saliency.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"parts": ["groups"], "mappings": ["map.tsv"]},
            "--mapping: is for --part robustness, found --part groups",
        ),
        ({"parts": ["terms"]}, "--part terms: needs --terms, found none"),
        ({"parts": ["saliency"]}, "--part saliency: needs --saliency, found none"),
        ({"group_by": ["speaker"]}, "--group-by: needs --data, the files that have the column"),
        ({"parts": ["groups"], "store_temperature": True}, "--store-temperature: is for --part calibration"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, message):
    with pytest.raises(UserError) as error:
        probe(tmp_path, Options(**options))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--part", "all"],
            "--part: found 'all', expected one of robustness, groups, calibration, terms, saliency",
        ),
        (["--by", "sentence"], "--by: found 'sentence', expected one of auto, examples, groups"),
        (["--data", "none.jsonl"], "none.jsonl: no such file"),
        (["--mapping", "none.tsv"], "none.tsv: no such file"),
        (["--source", "gsw"], "--source: found 'gsw', but the run has one data set"),
    ],
)
def test_probe_with_a_mistake(cli_in, tmp_path, arguments, message):
    run_folder(BY_NAME["one class"], tmp_path)
    _, err = cli_in(tmp_path)("probe", "run", *arguments, code=2)
    assert err.splitlines()[-1].startswith(f"fangyan: {message}")


def test_probe_without_captum(tmp_path, monkeypatch):
    run = run_folder(BY_NAME["one class"], tmp_path)
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "captum" else find(name))
    said = []
    probe(run, Options(parts=["groups"]), said.append)
    assert said == []
    assert sorted(path.name for path in (run / "probe").iterdir()) == ["groups.json", "groups.svg"]
    with pytest.raises(UserError, match="--saliency needs the package captum, which is not installed"):
        probe(run, Options(texts=["w10"], parts=["saliency"]))


def test_a_full_disk_leaves_what_was_there(tmp_path):
    with mounted(tmp_path / "disk", 64 << 20) as disk:
        run = run_folder(BY_NAME["one class"], disk)
        label_dev(run, wrong=3)
        probe(run, Options(parts=["groups"]))
        before = {path.name: path.read_bytes() for path in (run / "probe").iterdir()}
        config = (run / "model" / "config.json").read_bytes()
        os.sync()
        fill(disk)
        with pytest.raises(UserError, match="cannot be written .*after making room, run the command again"):
            probe(run, Options(parts=["groups"]))
        with pytest.raises(UserError, match="config.json cannot be written"):
            probe(run, Options(parts=["calibration"], store_temperature=True))
        assert {path.name: path.read_bytes() for path in (run / "probe").iterdir()}.keys() == before.keys()
        assert (run / "probe" / "groups.json").read_bytes() == before["groups.json"]
        assert (run / "model" / "config.json").read_bytes() == config
