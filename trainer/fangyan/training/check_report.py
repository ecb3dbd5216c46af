"""A check's report: tables for a terminal, or JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from fangyan.recipe import Recipe
from fangyan.terminal import duration
from fangyan.training.check import Report
from fangyan.training.memory import memory_table
from fangyan.training.plan import plan_table

# Labels that a terminal shows, the most frequent; JSON has all.
_SHOWN = 20


def tables(report: Report, recipe: Recipe, ranks: int) -> Iterator[RenderableType]:
    """Yield what a terminal shows: sizes first, errors last."""
    if report.splits:
        yield _sizes(report)
    if report.labels:
        yield _labels(report)
    if report.lengths:
        yield _lengths(report)
        yield _summary(report)
    if report.memory is not None:
        yield memory_table(report.memory, recipe, ranks)
    if report.plan is not None:
        yield plan_table(report.plan)
    for title, findings in (("Warnings", report.warnings), ("Errors", report.errors)):
        if findings:
            table = Table(title=f"{title} ({len(findings)})", title_justify="left")
            table.add_column("where", overflow="fold")
            table.add_column("what", overflow="fold")
            for finding in findings:
                table.add_row(escape(finding.place), escape(finding.message))
            yield table
    yield f"{report.name}: errors {len(report.errors)}, warnings {len(report.warnings)}"


def _sizes(report: Report) -> Table:
    table = Table("split", title=report.name, title_justify="left")
    for column in ("examples", report.unit, "sub-words"):
        table.add_column(column, justify="right")
    for name, sizes in report.splits.items():
        values = (sizes.get(key) for key in ("examples", "units", "sub-words"))
        table.add_row(name, *("–" if value is None else f"{value:,}" for value in values))
    return table


def _labels(report: Report) -> Table:
    names = {name for counts in report.labels.values() for name in counts}
    train = report.labels["train"]
    ordered = sorted(names, key=lambda name: (-train.get(name, 0), name))
    table = Table("label", title=f"Labels: {len(ordered)}", title_justify="left")
    for split in report.labels:
        table.add_column(split, justify="right")
    for name in ordered[:_SHOWN]:
        table.add_row(escape(name), *(f"{counts.get(name, 0):,}" for counts in report.labels.values()))
    if len(ordered) > _SHOWN:
        table.add_row(f"and {len(ordered) - _SHOWN} more", *("" for _ in report.labels))
    return table


def _lengths(report: Report) -> Table:
    table = Table("sub-words", title="Sequences of train", title_justify="left")
    table.add_column("sequences", justify="right")
    table.add_column("")
    most = max(report.lengths.values())
    for length, count in report.lengths.items():
        span = "1" if length == 1 else f"{length // 2 + 1}-{length}"
        table.add_row(span, f"{count:,}", "█" * round(30 * count / most))
    return table


def _summary(report: Report) -> str:
    model, empty = report.model, report.empty
    lines = [
        f"{model['class']}: {model['parameters']:,} parameters, {model['trained']:,} of them trained, in "
        f"{model['steps']:,} steps",
        f"padding: {100 * empty['packed']:.1f}% of a batch (layout {model['layout']}); with a sequence per "
        f"row {100 * empty['padded']:.1f}%",
    ]
    if report.seconds is not None:
        lines.append(
            f"time: {duration(report.seconds)} for forwards and backwards, by a few micro-batches here; "
            "optimizer and evaluation come on top"
        )
    if report.plan is not None:
        lines.append(
            f"shares: of {report.plan.ranks.number:,} ranks, the busiest has "
            f"{100 * report.plan.busiest:,.1f}% more sub-words than the mean"
        )
    return "\n".join(lines)


def as_json(report: Report) -> dict[str, Any]:
    """Return a report as JSON has it; memory in bytes, time in seconds."""
    memory = report.memory
    return {
        "recipe": report.name,
        "errors": [{"place": found.place, "message": found.message} for found in report.errors],
        "warnings": [{"place": found.place, "message": found.message} for found in report.warnings],
        "splits": {
            name: {report.unit if key == "units" else key: value for key, value in sizes.items()}
            for name, sizes in report.splits.items()
        },
        "labels": {name: dict(counts) for name, counts in report.labels.items()},
        "lengths": {str(length): count for length, count in report.lengths.items()},
        "padding": report.empty,
        "model": report.model,
        "memory": None if memory is None else memory.as_json(),
        "seconds": report.seconds,
        "plan": None if report.plan is None else report.plan.as_json(),
    }
