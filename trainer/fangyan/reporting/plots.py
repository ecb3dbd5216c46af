"""The plots of a run's report, from what its folder says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from fangyan.reporting.collect import Known
from fangyan.reporting.drawing import GRID, INK, SERIES, Picture, draw, number, plain
from fangyan.reporting.predictions import Calibrated
from fangyan.tasks.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Points of a curve, rows of its table, classes of a plot, labels of a matrix.
_POINTS, _ROWS, _CLASSES, _LABELS = 400, 20, 25, 12

Series = Sequence[tuple[int, float]]
# What a run writes of where its time went, and how a report calls it.
_TIMES = {
    "steps_s": "steps",
    "evaluation_s": "evaluation",
    "checkpoint_s": "checkpoints",
    "other_s": "all else",
}


def curve(name: str, title: str, unit: str, lines: Mapping[str, Series]) -> Picture | None:
    """Return curves over the steps, of one run or of several; None where there is no point.

    Args:
        name: of the file.
        title: of the plot.
        unit: of the values.
        lines: by what each is of.
    """
    lines = {label: _thinned(points, _POINTS) for label, points in lines.items() if points}
    if not lines:
        return None

    def plot(axes: Axes) -> None:
        for i, (label, points) in enumerate(lines.items()):
            steps, values = zip(*points, strict=True)
            style = "o-" if len(points) < 40 else "-"
            color = SERIES[i % len(SERIES)]
            axes.plot(steps, values, style, color=color, linewidth=1.5, markersize=3, label=plain(label))
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        axes.margins(x=0.02)
        if len(lines) > 1:
            axes.legend(fontsize=9)

    said = "; ".join(
        f"{label}: from {number(points[0][1])} at step {points[0][0]:,} to {number(points[-1][1])} at step "
        f"{points[-1][0]:,}"
        for label, points in lines.items()
    )
    rows = [
        [*([label] if len(lines) > 1 else []), f"{step:,}", number(value)]
        for label, points in lines.items()
        for step, value in _thinned(points, _ROWS)
    ]
    head = [*(["of"] if len(lines) > 1 else []), "step", unit]
    return draw(name, title, f"{said}.", head, rows, plot)


def _thinned(points: Series, most: int) -> Series:
    """Return points, of many the means of as many neighbours."""
    size = -(-len(points) // most)
    if size == 1:
        return points
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def dev_curves(known: Known) -> list[Picture]:
    """Return dev's metrics over the epochs: percentages in one plot, others in one each."""
    names = list(dict.fromkeys(name for _, metrics in known.dev for name in metrics))
    lines = {name: [(step, m[name]) for step, m in known.dev if name in m] for name in names}
    is_percent = known.facts is not None and known.facts.metric_unit == "percent"
    groups = [names] if is_percent else [[name] for name in names]
    found = []
    for i, group in enumerate(groups):
        title = f"Dev {group[0].replace('_', ' ')}" if len(group) == 1 else "Dev metrics"
        unit = "percent" if is_percent else group[0].replace("_", " ")
        parts = {name.replace("_", " "): lines[name] for name in group}
        found.append(curve(f"dev-{i}" if i else "dev", title, unit, parts))
    return [picture for picture in found if picture is not None]


def class_bars(report: Report, split: str) -> Picture | None:
    """Return F1 of each class, with how often it occurs; None where there is none."""
    classes = report.classes[:_CLASSES]
    if not classes:
        return None

    names = [f"{plain(each.name)} ({each.support:,})" for each in classes]

    def plot(axes: Axes) -> None:
        places = range(len(classes))
        axes.barh(places, [each.f1 for each in classes], color=SERIES[0], height=0.7)
        axes.set_yticks(places, names)
        axes.set_ylim(len(classes) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.set_xlabel("F1, percent (in brackets: how often it occurs)")
        axes.grid(visible=False, axis="y")

    worst = min(classes, key=lambda each: each.f1)
    most = "" if len(classes) == len(report.classes) else f", the {len(classes)} most frequent"
    says = (
        f"F1 of each {report.unit} on {split}{most}; the lowest is {number(worst.f1)} of {worst.name}, which "
        f"occurs {worst.support:,} {'time' if worst.support == 1 else 'times'}."
    )
    rows = [
        [each.name, *(f"{value:.1f}" for value in each[1:4]), f"{each.support:,}"] for each in report.classes
    ]
    head = [report.unit, "precision", "recall", "F1", "support"]
    title = f"F1 by {report.unit}, {split}"
    return draw("classes", title, says, head, rows, plot, 0.7 + 0.24 * len(classes), names)


def confusion_matrix(known: Known, split: str) -> Picture | None:
    """Return how often each label was taken for each other; None where a text or token has not one label."""
    said = known.predictions.get(split, ())
    if not said or known.task == "extractive_qa" or not isinstance((said[0].gold or [""])[0], str):
        return None
    pairs = Counter(chain.from_iterable(zip(each.gold, each.predicted, strict=True) for each in said))
    mistakes = Counter(
        chain.from_iterable([left, right] * n for (left, right), n in pairs.items() if left != right)
    )
    support = Counter(chain.from_iterable([left] * n for (left, _), n in pairs.items()))
    labels = sorted(support | mistakes, key=lambda label: (-mistakes[label], -support[label], label))
    labels = sorted(labels[:_LABELS], key=lambda label: (-support[label], label))

    def plot(axes: Axes) -> None:
        from matplotlib.patches import Rectangle

        small = len(labels) > 8
        for row, gold in enumerate(labels):
            for column, predicted in enumerate(labels):
                if count := pairs[gold, predicted]:
                    share = count / max(support[gold], 1)
                    corner = column - 0.5, row - 0.5
                    box = Rectangle(corner, 1, 1, facecolor=SERIES[0], alpha=0.08 + 0.42 * share, linewidth=0)
                    axes.add_patch(box)
                    axes.text(
                        column, row, _brief(count), ha="center", va="center", fontsize=6 if small else 8
                    )
        axes.set_xticks(range(len(labels)), list(map(plain, labels)), rotation=90)
        axes.set_yticks(range(len(labels)), list(map(plain, labels)))
        axes.set_xlim(-0.5, len(labels) - 0.5)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_xlabel("predicted")
        axes.set_ylabel("gold")
        axes.grid(visible=False)

    right = sum(count for (left, other), count in pairs.items() if left == other)
    says = f"{100 * right / pairs.total():.1f}% of {pairs.total():,} labels on {split} are right."
    if len(labels) < len(support | mistakes):
        says += f" Shown are the {len(labels)} labels with most mistakes, of {len(support | mistakes)}."
    rows = [[gold, *(f"{pairs[gold, each]:,}" for each in labels)] for gold in labels]
    size = 0.9 + 0.25 * len(labels)
    title = f"Confusion matrix, {split}"
    head = ["gold \\ predicted", *labels]
    return draw("confusions", title, says, head, rows, plot, size, labels, labels)


def _brief(count: int) -> str:
    return str(count) if count < 1000 else f"{count / 1000:.0f}k"


def reliability_diagram(found: Calibrated, split: str) -> Picture:
    """Return how often a model is right, by how sure it is."""

    def plot(axes: Axes) -> None:
        for each in found.bins:
            width = each.high - each.low
            axes.bar(each.low, each.count / found.count, width, align="edge", color=GRID)
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--")
        points = [each.confidence for each in found.bins], [each.accuracy for each in found.bins]
        axes.plot(*points, "o-", color=SERIES[0], markersize=4)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("probability (grey: share of the predictions)")
        axes.set_ylabel("accuracy")

    says = (
        f"Expected calibration error on {split}: {found.ece:.2f}% of {found.count:,} predictions; on the "
        "dashed line, probabilities are right."
    )
    rows = [
        [
            *(f"{each.low:.2f} to {each.high:.2f}", f"{each.count:,}"),
            *(f"{100 * each.confidence:.1f}", f"{100 * each.accuracy:.1f}"),
        ]
        for each in found.bins
    ]
    head = ["probability", "predictions", "mean probability, %", "right, %"]
    return draw("calibration", f"Reliability, {split}", says, head, rows, plot)


def time_bars(known: Known) -> Picture | None:
    """Return where the time of a run went; None where it does not say."""
    records = known.of_kind("time")
    if not records:
        return None
    total = Counter[str]()
    for record in records:  # of each part, where a run was resumed
        for field, label in _TIMES.items():
            total[label] += record.get(field, 0.0)
    parts = [(label, total[label]) for label in _TIMES.values()]
    whole = sum(seconds for _, seconds in parts) or 1.0

    def plot(axes: Axes) -> None:
        axes.barh(range(len(parts)), [seconds for _, seconds in parts], color=SERIES[0], height=0.7)
        axes.set_yticks(range(len(parts)), [label for label, _ in parts])
        axes.set_ylim(len(parts) - 0.5, -0.5)
        axes.set_xlabel("seconds")
        axes.grid(visible=False, axis="y")

    rows = [[label, f"{seconds:,.1f}", f"{100 * seconds / whole:.0f}"] for label, seconds in parts]
    says = "; ".join(f"{label}: {share}%" for label, _, share in rows) + f" of {whole:,.0f} seconds."
    head, names = ["part", "seconds", "%"], [label for label, _ in parts]
    return draw("time", "Where the time went", says, head, rows, plot, 1.7, names)
