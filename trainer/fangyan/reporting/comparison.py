"""Several runs beside each other in one page: scores with p, curves, recipes, where they disagree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fangyan.analysis.compare import Comparison, compare_all
from fangyan.analysis.run_model import Scored
from fangyan.errors import UserError
from fangyan.inference.run_data import scored_split
from fangyan.reporting import plots
from fangyan.reporting.collect import Known, collect
from fangyan.reporting.drawing import Picture, number
from fangyan.reporting.errors import MOST, Row, Said, rows
from fangyan.reporting.page import GENERATOR, browser, render, write_page

# Bytes of a page that its generator's name is in.
_HEAD = 400


def write_comparison(runs: Sequence[Path], output: Path, say: Callable[[str], None] = print) -> Path:
    """Score the models of some runs on the same examples, and write a page that compares them.

    Args:
        runs: two folders or more; the others are compared with the first.
        output: the page; an earlier one is replaced.
        say: called with what to know of the examples.

    Returns:
        The path of the page.

    Raises:
        UserError: if tasks or examples of the runs differ, or ``output`` is another file.
    """
    _check_output(output)
    known = [collect(folder) for folder in runs]
    names = _names(runs)
    comparisons, scored = compare_all(runs, say=say)
    found = _disagreements(known[0], scored)
    text = render(
        "comparison.html.j2",
        title=" / ".join(names),
        names=names,
        folders=[str(folder) for folder in runs],
        comparisons=comparisons,
        data=comparisons[0].data.replace("of both", "of each"),
        head=_head(names),
        scores=_scores(comparisons),
        curves=_curves(known, names),
        fields=_fields(known),
        rows=[row.as_json() for row in found[:MOST]],
        total=len(found),
        browser=browser(found, known[0], names),
        has_labels=scored[0].predicted is not None,
    )
    write_page(output, text)
    return output


def _check_output(output: Path) -> None:
    """Refuse to replace what is no report."""
    if output.is_dir():
        raise UserError(f"--output {output}: a folder, expected a file")
    if output.is_file():
        with output.open("rb") as file:
            if GENERATOR.encode() not in file.read(_HEAD):
                raise UserError(f"--output {output}: a file that is no report, expected another name")


def _names(runs: Sequence[Path]) -> list[str]:
    """Return the folders' names, or their paths where two have one name."""
    names = [folder.resolve().name for folder in runs]
    return names if len(set(names)) == len(names) else [str(folder) for folder in runs]


def _head(names: Sequence[str]) -> list[str]:
    head = ["metric", names[0]]
    for name in names[1:]:
        head += [name, "difference", "95% interval", "p"]
    return head


def _scores(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """Return a row for each metric: the first run's, and each other's with its difference to that."""
    found = []
    for metric, first in comparisons[0].metrics.items():
        row = [metric.replace("_", " "), number(first.left)]
        for comparison in comparisons:
            value = comparison.metrics[metric]
            row += [number(value.right), f"{value.difference:+.2f}", value.bounds, value.probability]
        found.append(row)
    return found


def _curves(known: Sequence[Known], names: Sequence[str]) -> list[Picture]:
    """Return the loss, and dev's metric that picks the best epoch, of all runs."""
    metric = known[0].metric or ""
    pairs = list(zip(names, known, strict=True))
    dev = {name: [(step, m[metric]) for step, m in run.dev if metric in m] for name, run in pairs}
    found = [
        plots.curve(
            "loss", "Loss of train", "loss", {name: run.series("train", "loss") for name, run in pairs}
        ),
        plots.curve("dev", f"Dev {metric.replace('_', ' ')}", metric.replace("_", " "), dev),
    ]
    return [picture for picture in found if picture is not None]


def _fields(known: Sequence[Known]) -> list[list[str]]:
    """Return the fields of the recipes that differ, with each run's value."""
    flat = [dict(_flat(run.recipe)) for run in known]
    names = dict.fromkeys(name for fields in flat for name in fields)
    missing = "–"
    values = {name: [fields.get(name, missing) for fields in flat] for name in names}
    return [[name, *found] for name, found in values.items() if len(set(found)) > 1]


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        dotted = f"{prefix}." if prefix else ""
        return [pair for name, each in value.items() for pair in _flat(each, f"{dotted}{name}")]
    return [(prefix, "null" if value is None else str(value))]


def _disagreements(known: Known, scored: Sequence[Scored]) -> list[Row]:
    """Return where the runs predict different things."""
    predicted = [each.predicted for each in scored]
    first = scored[0]
    sides = [side for side in predicted if side is not None]
    if len(sides) < len(scored):
        return []
    gold = first.run.task.gold(first.examples)
    said = [
        Said(right, list(of_example))
        for right, of_example in zip(gold, zip(*sides, strict=True), strict=True)
    ]
    return rows(scored_split(known.folder), first.examples, said, known.data.token_unit == "words")
