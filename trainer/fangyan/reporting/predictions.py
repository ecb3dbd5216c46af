"""What the best model has said of dev and test, kept as it was scored: nothing is run twice for a report."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from numpy.typing import NDArray

from fangyan.analysis.calibration import Bin, reliability
from fangyan.analysis.run_model import RunModel
from fangyan.data.example import Example, read_lines
from fangyan.files import whole_file
from fangyan.inference.run_data import examples_of, scored_split
from fangyan.reporting.facts import damaged, read_json, write_json
from fangyan.tasks import TASKS
from fangyan.tasks.task import Task
from fangyan.yaml_text import read_yaml

# Names the scores of the best checkpoint: ``reports/<split>-best.json``.
BEST_REPORT = "best"
# Examples of a split whose predictions are kept: one second to write and to read.
MOST_KEPT = 20_000
# Fields of examples whose labels, or answers, a model predicts.
_LABELS = {"tags", "label", "answers"}
# Scores of a split that calibration may take: 32 MB.
MOST_SCORES = 8_000_000


@dataclass(frozen=True)
class Prediction:
    """What is predicted of one example, beside what is right.

    Attributes:
        gold: a label for each token, or of a text; or answers, any of which is right.
        predicted: a label for each token, or of a text; or an answer.
        probability: of each label that is predicted, where it is known.
    """

    gold: list[Any]
    predicted: list[Any]
    probability: list[float] | None = None


@dataclass(frozen=True)
class Calibrated:
    """How well probabilities are calibrated.

    Attributes:
        count: tokens or texts.
        ece: expected calibration error in percent.
        bins: of their confidence.
    """

    count: int
    ece: float
    bins: list[Bin]


def keeps_scores(task: Task, examples: Sequence[Example]) -> bool:
    """Return whether the scores of each label of examples are few enough to be kept while they are scored."""
    labels = len(task.unit_labels)
    if not labels or len(examples) * labels > MOST_SCORES:
        return False
    return sum(len(example.fields.get("tokens", " ")) for example in examples) * labels <= MOST_SCORES


def keep(folder: Path, split: str, task: Task, examples: Sequence[Example], outputs: Sequence[Any]) -> None:
    """Write what a model has predicted, and how well its probabilities are calibrated.

    Args:
        folder: of the run.
        split: of which the examples are.
        task: of the model.
        examples: in order.
        outputs: of all examples, of ``task.with_scores()`` where :func:`keeps_scores`.
    """
    predicted = task.predicted(examples, outputs)
    if predicted is None:
        return
    scores = task.class_scores(examples, outputs) if keeps_scores(task, examples) else None
    if scores is not None:
        found = reliability(*scores)
        calibrated = Calibrated(len(scores[1]), found.ece, found.bins)
        write_json(folder / "reports" / f"{split}-best-calibration.json", asdict(calibrated))
    kept = min(len(examples), MOST_KEPT)
    gold = task.gold([examples[i] for i in range(kept)])
    probabilities = _probabilities(task, predicted[:kept], None if scores is None else scores[0])
    with whole_file(path_of(folder, split)) as partial, partial.open("w", encoding="utf-8") as file:
        for right, said, shares in zip(gold, predicted[:kept], probabilities, strict=True):
            record = {"gold": right, "predicted": said, **({"probability": shares} if shares else {})}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def predict_again(folder: Path, say: Callable[[str], None] = print) -> None:
    """Run the model of a run that has ended on its test split, or dev, if its predictions were not kept.

    Args:
        folder: of the run.
        say: called with what the user waits for.

    Raises:
        UserError: if it is no run folder, or its model cannot be loaded.
    """
    config = TASKS.members.get(str(read_yaml(folder / "recipe.yaml").get("task", {}).get("name")))
    labelled = config is not None and bool(_LABELS & set(getattr(config, "fields", ())))
    split = scored_split(folder)
    if not labelled or not (folder / "model").is_dir() or path_of(folder, split).is_file():
        return
    examples = examples_of(folder, command="report")
    say(f"the model of {folder} runs on the {split} split, whose predictions were not kept")
    run = RunModel.load(folder)
    outputs = run.outputs(examples, keep_scores=keeps_scores(run.task, examples))
    report = run.task.report(examples, outputs)
    if report is not None:
        report.write(folder / "reports" / f"{split}-{BEST_REPORT}.json")
    keep(folder, split, run.task, examples, outputs)


def path_of(folder: Path, split: str) -> Path:
    """Return where a run folder has the predictions of a split."""
    return folder / "reports" / f"{split}-best-predictions.jsonl"


def read(folder: Path, split: str) -> list[Prediction] | None:
    """Return the predictions of a split's first examples; None where they were not kept.

    Raises:
        UserError: naming a line that is damaged.
    """
    path = path_of(folder, split)
    if not path.is_file():
        return None
    adapter, found = pydantic.TypeAdapter(Prediction), []
    for number, line in read_lines(path):
        try:
            found.append(adapter.validate_json(line))
        except pydantic.ValidationError as error:
            raise damaged(f"{path}:{number}", error) from None
    return found


def read_calibration(folder: Path, split: str) -> Calibrated | None:
    """Return how well probabilities of a split are calibrated; None where it is not known."""
    return read_json(folder / "reports" / f"{split}-best-calibration.json", Calibrated)


def _probabilities(
    task: Task, predicted: Sequence[Sequence[Any]], scores_NC: NDArray[np.float32] | None
) -> list[list[float] | None]:
    """Return the probability of each label that is predicted, by example."""
    if scores_NC is None:
        return [None] * len(predicted)
    index = {label: i for i, label in enumerate(task.unit_labels)}
    found: list[list[float] | None] = []
    first = 0
    for labels in predicted:
        rows = scores_NC[first : first + len(labels)]
        chosen = rows[np.arange(len(labels)), [index[label] for label in labels]]
        found.append([round(float(share), 3) for share in np.exp(chosen)])
        first += len(labels)
    return found
