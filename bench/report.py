"""A results folder as a Markdown page and plots.

    python bench/report.py [bench/results/MACHINE]

By default this machine's. Writes ``README.md``, ``ops.png``, ``memory.png``, ``scaling.png`` and
``steps.png`` beside the ``benchmarks.json`` of ``pytest bench/ --results``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter

from fangyan_bench.harness.machine import machine_name
from fangyan_bench.harness.results import Row, read
from fangyan_bench.harness.stats import Ratio

RESULTS = Path(__file__).parent / "results"
PLOTS = ("ops", "memory", "steps", "scaling")
COLOURS = {"baseline": "#9aa0a6", "peer": "#5b8db8", "ours": "#d1495b"}


def median(row: Row) -> float:
    """Return a row's median, in seconds."""
    seconds: float = row["seconds"]["median"]
    return seconds


def ratio(stored: dict[str, float] | None) -> str:
    """Return a ratio, "=" where the spread exceeds the difference, or "" where the baseline has no time."""
    if stored is None:
        return ""
    found = Ratio(**stored)
    return f"{found.median:.2f}x" if found.clear else "="


def duration(seconds: float) -> str:
    """Return seconds with three digits in a fitting unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def size(number: float) -> str:
    """Return bytes as MB or GB."""
    return f"{number / 1e6:,.1f} MB" if number < 1e9 else f"{number / 1e9:,.2f} GB"


def markdown(headings: list[str], rows: Iterable[list[str]]) -> str:
    """Return a Markdown table, all columns but the first aligned to the right."""
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def of_kind(rows: list[Row], kind: str) -> list[Row]:
    """Return the rows of one kind."""
    return [row for row in rows if row["kind"] == kind]


def groups(rows: list[Row], key: Callable[[Row], str]) -> list[tuple[str, list[Row]]]:
    """Return the rows by key, sorted; within a key they keep their order."""
    return [(name, list(members)) for name, members in groupby(sorted(rows, key=key), key)]


def op_title(row: Row) -> str:
    """Return what the rows of one op's table have in common."""
    return f"{row['op']}, {row['shape']}, {row['pass']}"


def op_tables(rows: list[Row]) -> str:
    """Return a table per op, shape and pass."""
    text = ""
    for title, members in groups(of_kind(rows, "op"), op_title):
        baseline = members[0]["baseline"]
        headings = ["who", "median", f"speed, {baseline} = 1", "time / floor", "error"]
        text += f"\n### {title}\n\nFloor: {duration(members[0]['floor_seconds'])}.\n\n"
        text += markdown([*headings, "peak memory", "first call"], map(op_cells, members))
    return text


def op_cells(row: Row) -> list[str]:
    """Return one line of an op's table."""
    name = row["implementation"]
    return [
        f"**{name}**" if row["role"] == "ours" else name,
        duration(median(row)),
        "1" if name == row["baseline"] else ratio(row.get("ratio")),
        f"{median(row) / row['floor_seconds']:.1f}",
        f"{row['error']:.1e}" if "error" in row else "",
        size(row["peak_memory"]),
        duration(row["first_call_seconds"]),
    ]


def step_tables(rows: list[Row]) -> str:
    """Return a table per model, then training until a score, then ranks."""
    text = ""
    for model, members in groups(of_kind(rows, "step"), lambda row: str(row["model"])):
        text += f"\n### A {members[0]['task']}'s whole step, {model}\n\n"
        headings = ["who", "tokens/s", "sentences/s", "fangyan is", "of peak FLOP/s", "peak memory"]
        text += markdown(headings, map(step_cells, members))
    scored = of_kind(rows, "time to score")
    if scored:
        text += f"\n### Training until dev joint F1 {scored[0]['score']}\n\n"
        cells = ([row["implementation"], duration(median(row))] for row in scored)
        text += markdown(["who", "training time"], cells)
    ranks = of_kind(rows, "ranks")
    if ranks:
        text += "\n### fangyan by ranks and ZeRO stage\n\n"
        cells = ([str(row["ranks"]), str(row["stage"]), f"{1 / median(row):,.0f}"] for row in ranks)
        text += markdown(["ranks", "ZeRO stage", "tokens/s"], cells)
    return text


def step_cells(row: Row) -> list[str]:
    """Return one line of a step's table."""
    return [
        row["implementation"],
        f"{row['tokens_per_second']:,.0f}",
        f"{row['samples_per_second']:,.0f}",
        "" if row["role"] == "ours" else ratio(row["ours"]),
        f"{row['flops_utilisation']:.0%}",
        size(row["peak_memory"]),
    ]


def scaling_table(rows: list[Row]) -> str:
    """Return the exponents of all costs' growth."""
    lines = [
        [f"{row['op']}, {name}", row["dim"], f"{slope:.2f}"]
        for row in of_kind(rows, "scaling")
        for name, slope in row["slopes"].items()
    ]
    if not lines:
        return ""
    return "\n### Growth of cost (exponent)\n\n" + markdown(["what", "with", "exponent"], lines)


def bars(
    path: Path,
    titled: list[tuple[str, list[Row]]],
    value: Callable[[Row], float],
    text: Callable[[Row], str],
    label: str,
) -> None:
    """Draw horizontal bars, one panel per group.

    Args:
        path: of the picture.
        titled: groups of rows with their titles.
        value: returns the length of a row's bar.
        text: returns what stands at its end.
        label: of the axis.
    """
    if not titled:
        return
    columns = min(3, len(titled))
    lines = -(-len(titled) // columns)
    most = max(len(members) for _, members in titled)
    extent = (5.2 * columns, lines * (0.6 + 0.24 * most))
    figure, axes = plt.subplots(lines, columns, figsize=extent, squeeze=False)
    for axis in axes.flat[len(titled) :]:
        axis.set_visible(False)
    for axis, (title, members) in zip(axes.flat, titled, strict=False):
        names = [row["implementation"] for row in members]
        axis.barh(names, list(map(value, members)), color=[COLOURS[row["role"]] for row in members])
        axis.invert_yaxis()
        axis.set_title(title, loc="left", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.bar_label(axis.containers[0], labels=list(map(text, members)), fontsize=7, padding=2)
        axis.margins(x=0.16)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(label, fontsize=9)
    save(figure, path)


def plot(folder: Path, rows: list[Row]) -> None:
    """Draw speed and memory of the ops, throughput of the steps, and growth."""
    passes = ("forward+backward", "call")
    compared = [row for row in of_kind(rows, "op") if row["pass"] in passes and "ratio" in row]
    titled = groups(compared, lambda row: op_title(row).replace(", forward+backward", ""))
    bars(
        folder / "ops.png",
        titled,
        lambda row: float(row["ratio"]["median"]),
        lambda row: ratio(row["ratio"]),
        "speed of forward and backward, the first baseline is 1; =: the spread is larger than the difference",
    )
    bars(
        folder / "memory.png",
        titled,
        lambda row: float(row["peak_memory"]),
        lambda row: size(row["peak_memory"]),
        "peak memory of forward and backward",
    )
    bars(
        folder / "steps.png",
        groups(of_kind(rows, "step"), lambda row: f"{row['task']}, {row['model']}"),
        lambda row: float(row["tokens_per_second"]),
        lambda row: f"{row['tokens_per_second']:,.0f}",
        "tokens per second of whole steps, optimizer included",
    )
    plot_scaling(folder, of_kind(rows, "scaling"))


def plot_scaling(folder: Path, rows: list[Row]) -> None:
    """Draw the cost over one dimension, one panel per op and dimension."""
    if not rows:
        return
    figure, axes = plt.subplots(1, len(rows), figsize=(3.1 * len(rows), 3), squeeze=False)
    for axis, row in zip(axes[0], rows, strict=True):
        for name, points in row["points"].items():
            sizes, seconds = zip(*points, strict=True)
            label = f"{name}: {row['dim']}^{row['slopes'][name]:.2f}"
            axis.loglog(sizes, [1e3 * value for value in seconds], marker="o", markersize=3, label=label)
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(f"{row['op']}", fontsize=9)
        axis.set_xlabel(row["dim"], fontsize=9)
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=6)
    axes[0, 0].set_ylabel("ms", fontsize=9)
    save(figure, folder / "scaling.png")


def save(figure: Any, path: Path) -> None:
    """Write a picture."""
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def page(folder: Path, run: dict[str, Any], rows: list[Row]) -> str:
    """Return the folder's page."""
    versions = dict(run["versions"])
    python = versions.pop("python")
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    peaks = ", ".join(f"{flops / 1e9:,.0f} GFLOP/s {dtype}" for dtype, flops in run["flops"].items())
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    return (
        f"# {run['machine']}\n\n"
        f"`{run['command']}`, {run['date']}, commit {commits}; "
        f"Python {python}, {packages}, {run['threads']} threads. "
        f"Ceilings measured at the start: {run['bytes_per_second'] / 1e9:.1f} GB/s, {peaks}.\n\n"
        "Medians of rounds in which all take turns. `=`: the spread of the rounds is larger than the "
        "difference. Error: the largest of value and gradients, relative to their norm. First call: "
        "preparation and compilation.\n\n"
        + "".join(f"![{name}]({name}.png)\n" for name in PLOTS if (folder / f"{name}.png").exists())
        + f"\n## Whole steps\n{step_tables(rows)}\n## Ops\n{op_tables(rows)}{scaling_table(rows)}"
    )


def main() -> None:
    """Write the page and the plots of a results folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=RESULTS / machine_name())
    folder = parser.parse_args().folder
    run, rows = read(folder / "benchmarks.json")
    plot(folder, rows)
    (folder / "README.md").write_text(page(folder, run, rows), encoding="utf-8")
    print(f"wrote {folder}/README.md and its plots")


if __name__ == "__main__":
    main()
