"""A new task, format or objective is one file and one line: added to a copy of the package, and trained."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow

SPACED = '''
"""Sentences on one line: token/tag token/tag."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from fangyan.data.example import Example, read_lines
from fangyan.data.splits import TaggedDataConfig


class Spaced(TaggedDataConfig):
    """One sentence per line, its tokens and tags joined by a slash."""

    format: Literal["spaced"] = "spaced"

    def read(self, path: Path) -> Iterator[Example]:
        for number, line in read_lines(path):
            tokens, tags = zip(*(pair.split("/") for pair in line.split()), strict=True)
            yield Example({"tokens": tokens, "tags": tags}, f"{path}:{number}", line)
'''

CONFIDENT = '''
"""Cross-entropy times a constant."""

from typing import Literal

from fangyan.objectives.objective import Objective


class Scaled(Objective):
    """Cross-entropy times a factor."""

    name: Literal["scaled"] = "scaled"
    factor: float

    def loss(self, model, batch, divisor):
        return model.loss(batch, divisor) * self.factor
'''

LENGTHS = '''
"""Whether a token has one character or more, which no file needs to say."""

from typing import ClassVar, Literal

from fangyan.data.example import Example
from fangyan.tasks.task import TaskConfig
from fangyan.tasks.token_classification.task import TokenClassification


class Lengths(TokenClassification):
    """Classifies tokens by their length."""

    name = "token_length"
    fields: ClassVar[tuple[str, ...]] = ("tokens",)

    def classes(self, example):
        return [int(len(token) > 1) for token in example.fields["tokens"]]

    def findings(self, splits):
        return []

    def label_counts(self, splits):
        return {}

    def tokenize(self, examples, tokenizer, max_length):
        return super().tokenize([self.labelled(example) for example in examples], tokenizer, max_length)

    def metrics(self, examples, outputs):
        return super().metrics([self.labelled(example) for example in examples], outputs)

    def labelled(self, example):
        tags = tuple(self.labels[i] for i in self.classes(example))
        return Example({**example.fields, "tags": tags}, example.source, example.group)


class LengthsConfig(TaskConfig):
    """Whether a token has one character or more."""

    name: Literal["token_length"] = "token_length"
    fields: ClassVar[tuple[str, ...]] = ("tokens",)

    def build(self, splits, data):
        return Lengths(["one", "more"], "plain")

    @classmethod
    def from_export(cls, config, model_config):
        return Lengths(["one", "more"], "plain")
'''

SENTENCES = "我/r 食/v 飯/n\n今日/t 食/v\n佢/r 今日/t 去/v\n" * 4
RECIPE = """
name: {name}
data: {{format: {format}, train: {file}, dev: {file}}}
optimizer: {{lr: 1.0e-3}}
train: {{epochs: 3, batch_tokens: 64, log_every: 1}}
{more}
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the trainer with all three."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "trainer" / "fangyan", folder / "fangyan")
    (folder / "toy.txt").write_text(SENTENCES, encoding="utf-8")
    conll = "".join(
        "".join(pair.replace("/", "\t") + "\n" for pair in line.split()) + "\n"
        for line in SENTENCES.splitlines()
    )
    (folder / "toy.conll").write_text(conll, encoding="utf-8")
    add(folder, "data/formats/spaced.py", SPACED, "data/formats", "Spaced")
    add(folder, "objectives/scaled.py", CONFIDENT, "objectives", "Scaled")
    add(folder, "tasks/token_length/task.py", LENGTHS, "tasks", "LengthsConfig")
    return folder


def add(package, file, text, family, member):
    """Write the new component's file, and its line in the family's list."""
    path = package / "fangyan" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    init = package / "fangyan" / family / "__init__.py"
    module = file.removesuffix(".py").replace("/", ".")
    lines = init.read_text(encoding="utf-8").replace("= OneOf(\n", f"= OneOf(\n    {member},\n", 1)
    lines = lines.replace(
        "from fangyan.config import", f"from fangyan.{module} import {member}\nfrom fangyan.config import", 1
    )
    init.write_text(lines, encoding="utf-8")


# In one process, since imports take longer than runs.
SCRIPT = """
import sys
import fangyan
for recipe in sys.argv[1:]:
    print("=== ", recipe, flush=True)
    fangyan.train(recipe)
(tagged,) = fangyan.load("runs/task").predict(["我 今日"])
print("predicted", *tagged.tokens)
"""

RUNS = {
    "plain": {},
    "format": {"format": "spaced", "file": "toy.txt"},
    "objective": {"more": "objective: {name: scaled, factor: 3.0}"},
    "task": {"more": "task: {name: token_length}"},
}


@pytest.fixture(scope="module")
def runs(package):
    """The losses of each run with the copy, and the lines that it printed."""
    for name, changes in RUNS.items():
        fields = {"name": name, "format": "conll", "file": "toy.conll", "more": "", **changes}
        (package / f"{name}.yaml").write_text(RECIPE.format(**fields), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": f"{package}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, *(f"{name}.yaml" for name in RUNS)]
    result = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    found = {}
    for name, printed in zip(RUNS, result.stdout.split("=== ")[1:], strict=True):
        lines = (package / "runs" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses = [record["loss"] for record in map(json.loads, lines) if record["kind"] == "train"]
        found[name] = losses, printed
    return found


def test_a_format_is_one_file_and_one_line(runs):
    losses, out = runs["format"]
    assert losses == runs["plain"][0], "the same sentences in CoNLL columns"
    assert "token accuracy" in out


def test_an_objective_is_one_file_and_one_line(runs):
    scaled, _ = runs["objective"]
    assert scaled[0] == pytest.approx(3 * runs["plain"][0][0], rel=1e-6)
    assert scaled[-1] < scaled[0]


def test_a_task_is_one_folder_and_one_line(runs):
    losses, out = runs["task"]
    assert losses[-1] < losses[0]
    assert "token accuracy" in out
    assert "predicted 我 今日" in out
