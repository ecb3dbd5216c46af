"""``--profile``: a trace and a table, and a run that is otherwise the same."""

import json

import pytest

pytestmark = pytest.mark.slow


def test_train_with_profile_is_otherwise_the_same(cli):
    out, _ = cli(*cli.train_arguments("train.epochs=2"), "--profile")
    assert "The 10 costliest parts of a step" in out
    assert "fangyan's kernels" in out
    trace = json.loads((cli.folder / "run/profile/trace.json").read_text(encoding="utf-8"))
    names = {event.get("name") for event in trace["traceEvents"]}
    assert "aten::addmm" in names
    assert "The 10 costliest parts of a step" in (cli.folder / "run/log.txt").read_text(encoding="utf-8")
    cli.train("train.epochs=2", run="plain")
    assert cli.losses() == cli.losses("plain")


def test_train_with_profile_of_too_short_a_run(cli):
    _, err = cli(*cli.train_arguments("train.epochs=1", "train.batch_tokens=512"), "--profile")
    assert "steps, expected 9; no trace" in err
    assert not (cli.folder / "run/profile").exists()
