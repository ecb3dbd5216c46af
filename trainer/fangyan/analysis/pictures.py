"""Pictures of what was found, as SVG: text in them is text, of any script that a reader has a font for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fangyan.analysis.calibration import Calibration, Reliability
from fangyan.analysis.groups import GroupReport
from fangyan.analysis.robustness import RobustnessReport
from fangyan.analysis.saliency import Saliency
from fangyan.analysis.terms import TermReport
from fangyan.files import REPEAT, whole_file
from fangyan.terminal import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Groups of a column, and labels of a text, that are drawn.
_MOST = 40
# Characters of a name.
_LONGEST = 40
_BLUE, _ORANGE = "tab:blue", "tab:orange"


def draw(report: Any, path: Path) -> None:
    """Draw a report, in which is something to see."""
    drawn: dict[type, Callable[[Any, Path], None]] = {
        RobustnessReport: _draw_robustness,
        GroupReport: _draw_groups,
        Calibration: _draw_calibration,
        TermReport: _draw_terms,
        Saliency: _draw_saliency,
    }
    drawn[type(report)](report, path)


@contextmanager
def _drawing(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield a figure, in inches, that is then written."""
    import matplotlib
    from matplotlib.figure import Figure

    # Text stays text, and a picture of the same numbers is the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fangyan", "font.size": 9}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        with whole_file(path, REPEAT) as partial, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of characters that its own font lacks
            figure.savefig(partial, format="svg", metadata={"Date": None})


def _intervals(axes: Axes, rows: list[tuple[str, float, Any]], label: str) -> None:
    """Draw a point, and where there is one its interval, for each row, the first on top."""
    for i, (_, value, interval) in enumerate(rows):
        if interval is not None:
            axes.plot(interval, [i, i], color=_BLUE, linewidth=1.5)
        axes.plot([value], [i], "o", color=_BLUE, markersize=4)
    axes.set_yticks(range(len(rows)), [_plain(name) for name, _, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel(_plain(label))
    axes.grid(axis="x", alpha=0.3)


def _plain(text: str) -> str:
    """Return text as a picture shows it: a dollar begins no formula, XML has no control characters.

    Of what is long the beginning has to do, or there is no room for the plot.
    """
    shown = printable(text).replace("\n", " ")
    return (shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…").replace("$", r"\$")


def _draw_robustness(report: RobustnessReport, path: Path) -> None:
    """Draw the difference that each perturbation makes, with its interval."""
    metric = report.metric
    rows = [
        (row.name, row.metrics[metric].difference, row.metrics[metric].interval)
        for row in report.perturbations
    ]
    with _drawing(path, 6.0, 1.0 + 0.3 * len(rows)) as figure:
        axes = figure.subplots()
        axes.axvline(0.0, color="black", linewidth=0.8)
        _intervals(axes, rows, f"difference of {metric.replace('_', ' ')}")


def _draw_terms(report: TermReport, path: Path) -> None:
    """Draw the gap of each pair of terms, with its interval."""
    rows = [
        (gap.pairs, gap.metrics[report.metric].difference, gap.metrics[report.metric].interval)
        for gap in report.gaps
    ][:_MOST]
    with _drawing(path, 6.0, 1.0 + 0.3 * len(rows)) as figure:
        axes = figure.subplots()
        axes.axvline(0.0, color="black", linewidth=0.8)
        _intervals(axes, rows, f"{report.metric.replace('_', ' ')}, {report.sides[1]} less {report.sides[0]}")


def _draw_groups(report: GroupReport, path: Path) -> None:
    """Draw the score of each group, with its interval, a plot for each column."""
    columns = {name: groups[:_MOST] for name, groups in report.columns.items() if len(groups) > 1}
    heights = [1.0 + 0.25 * len(groups) for groups in columns.values()]
    with _drawing(path, 6.0, sum(heights)) as figure:
        plots = figure.subplots(len(columns), 1, squeeze=False, height_ratios=heights)
        for (axes,), (column, groups) in zip(plots, columns.items(), strict=True):
            rows = [
                (
                    f"{group.value} ({group.examples:,})",
                    group.metrics[report.metric],
                    group.intervals.get(report.metric),
                )
                for group in groups
            ]
            _intervals(axes, rows, report.metric.replace("_", " "))
            axes.set_title(_plain(f"by {column}"), fontsize=9)


def _draw_calibration(report: Calibration, path: Path) -> None:
    """Draw accuracy against confidence, before and after, over the shares of the predictions."""
    with _drawing(path, 7.0, 3.4) as figure:
        sides = (("temperature 1", report.before), (f"temperature {report.temperature:.3f}", report.after))
        for axes, (name, side) in zip(figure.subplots(1, 2, sharey=True), sides, strict=True):
            _draw_reliability(axes, side, report.count)
            axes.set_title(f"{name}: ECE {side.ece:.2f}%", fontsize=9)


def _draw_reliability(axes: Axes, side: Reliability, count: int) -> None:
    for each in side.bins:
        axes.bar(each.low, each.count / count, each.high - each.low, align="edge", color="lightgrey")
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    axes.plot(
        [each.confidence for each in side.bins], [each.accuracy for each in side.bins], "o-", color=_ORANGE
    )
    axes.set_xlabel("confidence (grey: share of the predictions)")
    axes.set_ylabel("accuracy")


def _draw_saliency(report: Saliency, path: Path) -> None:
    """Draw what each word adds to each label: blue for it, red against it."""
    rows = report.attributions[:_MOST]
    largest = max((abs(value) for row in rows for value in row.words), default=1.0) or 1.0
    width = 1.5 + 0.34 * len(report.words)
    with _drawing(path, width, 1.2 + 0.28 * len(rows)) as figure:
        axes = figure.subplots()
        image = axes.imshow(
            [row.words for row in rows], cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto"
        )
        axes.set_xticks(range(len(report.words)), list(map(_plain, report.words)))
        axes.set_yticks(range(len(rows)), [_plain(f"{row.of} {row.label}") for row in rows])
        figure.colorbar(image, label="attribution")
