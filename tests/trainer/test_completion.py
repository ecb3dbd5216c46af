"""What a shell completes, quickly."""

import os
import subprocess
import sys

import pytest
from fangyan.cli import completion
from fangyan.deployment.export import FORMATS
from fangyan.selection.select import STRATEGIES


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in ("runs/tagger", "runs/other"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "recipe.yaml").touch()
    for name in ("cat.yaml", "cat.txt", ".hidden.yaml"):
        (tmp_path / name).touch()
    return tmp_path


def test_recipes_and_files(folder):
    assert list(completion.recipes("cantonese-p")) == ["cantonese-pos"]
    found = list(completion.recipes("ca"))
    assert found[0] == "cantonese-answers"
    assert found[-1] == "cat.yaml"
    assert list(completion.recipes("r")) == ["runs/"]
    assert list(completion.recipes("runs/tagger/")) == ["runs/tagger/recipe.yaml"]
    assert list(completion.recipes("nowhere/")) == []


def test_fields():
    """One alone comes with its default: a shell would put a space behind it."""
    assert list(completion.fields("train.epo")) == ["train.epochs=", "train.epochs=5"]
    assert {"optimizer.lr=", "optimizer.name="} <= set(completion.fields("optimizer."))
    assert list(completion.fields("train.epochs=")) == []
    assert list(completion.fields("data.col")) == ["data.columns=", "data.column="]


def test_runs(folder):
    assert list(completion.runs("")) == ["runs/other", "runs/tagger", "runs/"]
    assert list(completion.runs("runs/t")) == ["runs/tagger"]


def test_names():
    assert list(completion.formats("conll")) == ["conll", "conllu"]
    assert tuple(completion.export_formats("")) == FORMATS
    assert tuple(completion.strategies("")) == STRATEGIES


ASKED = """
import atexit, sys
sys.argv = ["fangyan"]
from fangyan.cli import command
atexit.register(lambda: print([name for name in ("torch", "transformers") if name in sys.modules]))
command()
"""


def test_a_shell_is_answered_without_torch(folder):
    words = {"COMP_WORDS": "fangyan\ncheck\ncat.yaml\ntrain.epo", "COMP_CWORD": "3"}
    environment = os.environ | words | {"_FANGYAN_COMPLETE": "complete_bash"}
    command = [sys.executable, "-c", ASKED]
    out = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True).stdout
    assert out.split() == ["train.epochs=", "train.epochs=5", "[]"]
