"""Whether two runs' models differ, on the same examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from fangyan.analysis.bootstrap import RESAMPLES, By, Difference, Units, paired
from fangyan.analysis.run_model import RunModel, Scored
from fangyan.data.example import DATASET, PREFIX, Example
from fangyan.errors import UserError
from fangyan.inference.load import model_folder
from fangyan.inference.run_data import examples_of, scored_split


@dataclass(frozen=True)
class Comparison:
    """Two models' scores on the same examples.

    Attributes:
        runs: their folders.
        data: what they were scored on: files, or a split of theirs.
        examples: how many.
        units: what was resampled, in words.
        resamples: how many.
        metrics: by name.
        notes: what to know beside.
    """

    runs: tuple[str, str]
    data: str
    examples: int
    units: str
    resamples: int
    metrics: dict[str, Difference]
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return all of it as what JSON holds."""
        return asdict(self)

    def table(self) -> Table:
        """Return the metrics of both, their difference, its interval and p."""
        caption = f"{self.data}: {self.units}; {self.resamples:,} resamples"
        found = Table(caption=escape(caption), caption_justify="left")
        for i, head in enumerate(("metric", *self.runs, "difference", "95% interval", "p")):
            found.add_column(escape(head), justify="right" if i else "left", overflow="fold")
        for name, value in self.metrics.items():
            numbers = f"{value.left:,.2f}", f"{value.right:,.2f}", f"{value.difference:+,.2f}"
            found.add_row(name.replace("_", " "), *numbers, value.bounds, value.probability)
        return found


def compare(
    left: str | Path,
    right: str | Path,
    data: Sequence[str] | None = None,
    source: str | None = None,
    by: By = "auto",
    resamples: int = RESAMPLES,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Comparison:
    """Compare two runs' models by a paired bootstrap; see :mod:`fangyan.analysis.bootstrap`.

    Args:
        left: a run folder.
        right: another.
        data: files of the runs' formats; by default the test split that was kept with both.
        source: of which of several data sets the examples are.
        by: what is resampled: examples, groups of them, or ``auto``.
        resamples: how many draws.
        seed: of the draws.
        say: called with a message on what a model has not learned, such as a tag.

    Raises:
        UserError: if the runs' tasks or examples differ, or one is no run folder.
    """
    (found,), _ = compare_all([left, right], data, source, by, resamples, seed, say)
    return found


def compare_all(
    runs: Sequence[str | Path],
    data: Sequence[str] | None = None,
    source: str | None = None,
    by: By = "auto",
    resamples: int = RESAMPLES,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> tuple[list[Comparison], list[Scored]]:
    """Compare the models of runs with that of the first; see :func:`compare`, also for the arguments.

    Returns:
        How each other run differs from the first, and what each model says of the examples.
    """
    folders = [Path(run) for run in runs]
    for folder in folders:
        model_folder(folder)  # what is none is said at once
    models = [RunModel.load(folder) for folder in folders]
    for other in models[1:]:
        _check_alike([models[0], other])
    sides = [examples_of(folder, data, source, "compare") for folder in folders]
    split = scored_split(folders[0])
    for folder, examples in zip(folders[1:], sides[1:], strict=True):
        if not data and split != scored_split(folder):
            raise UserError(
                f"{folders[0]} and {folder}: one has no test split, expected --data with files for both"
            )
        _check_same([folders[0], folder], [sides[0], examples], bool(data))
    units = Units.of(sides[0], by)
    for model, examples in zip(models, sides, strict=True):
        for note in model.task.notes(examples):
            say(f"{model.folder}: {note}")
    scored = [Scored(*pair) for pair in zip(models, sides, strict=True)]
    best_on_dev = "there is no test split; dev has chosen the best epochs, so that its scores are too good"
    found = [
        Comparison(
            (str(runs[0]), str(folder)),
            ", ".join(data) if data else f"the {split} split of both",
            len(sides[0]),
            units.sentence,
            resamples,
            paired(scored[0].resampler, other.resampler, units, resamples, seed),
            [*_notes(models[0], other.run), *([best_on_dev] if not data and split == "dev" else [])],
        )
        for folder, other in zip(runs[1:], scored[1:], strict=True)
    ]
    return found, scored


def _check_same(folders: Sequence[Path], sides: Sequence[Sequence[Example]], from_files: bool) -> None:
    """Refuse examples that differ in more than whether their data set's name stands before them."""
    where = "of --data, read by each run's recipe" if from_files else "of the splits kept with the runs"
    hint = "expected the same" + ("" if from_files else ", or --data with files for both")
    if len(sides[0]) != len(sides[1]):
        raise UserError(
            f"{folders[0]} and {folders[1]}: {len(sides[0]):,} and {len(sides[1]):,} examples {where}, {hint}"
        )
    for one, other in zip(*sides, strict=True):
        if _untold(one) != _untold(other):
            raise UserError(
                f"{folders[0]} and {folders[1]}: examples {where} differ at {one.source} and {other.source}, "
                f"{hint}"
            )


def _untold(example: Example) -> dict[str, Any]:
    """Return an example's fields without the name of its data set."""
    fields = {name: value for name, value in example.fields.items() if name not in (DATASET, PREFIX)}
    for name in ("text", "question"):
        if DATASET in example.fields and name in fields:
            fields[name] = fields[name].removeprefix(f"{example.fields[DATASET]}: ")
    fields.pop("spaces", None)  # how tokens are laid out, which not every format says
    return fields


def _check_alike(runs: Sequence[RunModel]) -> None:
    """Refuse models whose metrics are not of one kind."""
    found: list[dict[str, Any]] = [
        {"task": run.task.name, "metrics": ", ".join(run.task.metric_names), **run.task.scored_as}
        for run in runs
    ]
    for name, value in found[0].items():
        if found[1].get(name) != value:
            raise UserError(
                f"{runs[0].folder} and {runs[1].folder}: {name} is {value} and {found[1].get(name)}, "
                "expected models that are scored alike"
            )


def _notes(left: RunModel, right: RunModel) -> list[str]:
    """Return what to know of a comparison beside its numbers."""
    notes = []
    labels = [set(run.task.model_kwargs().get("label2id", ())) for run in (left, right)]
    if labels[0] != labels[1]:
        more = sorted(labels[0] ^ labels[1])
        notes.append(
            f"{len(more)} labels are of one model alone, such as {more[0]}; each is scored with its own"
        )
    if not left.task.greater_is_better:
        notes.append("lower is better")
        if left.tokenizer.backend.get_vocab() != right.tokenizer.backend.get_vocab():
            notes.append(
                "the models' sub-words differ, so that perplexities per sub-word do not compare them"
            )
    return notes
