"""A results folder as a Markdown page and plots.

    python bench/report.py [bench/results/MACHINE]

By default this machine's. Writes ``README.md``, ``ops.png``, ``memory.png``, ``scaling.png`` and
``steps.png`` beside the ``benchmarks.json`` of ``pytest bench/ --results``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter

from fangyan_bench.harness.machine import machine_name

RESULTS = Path(__file__).parent / "results"
PLOTS = ("ops", "memory", "steps", "scaling")
COLOURS = {"baseline": "#9aa0a6", "peer": "#5b8db8", "ours": "#d1495b"}

Row = dict[str, Any]


def read(folder: Path) -> tuple[dict[str, Any], list[Row]]:
    """What the run says of itself, and a row a benchmark: its extra information and its median."""
    run = json.loads((folder / "benchmarks.json").read_text())
    rows = [
        {**entry["extra_info"], "group": entry["group"], "seconds": entry["stats"]["median"]}
        for entry in run["benchmarks"]
    ]
    return run, rows


def ratio(found: dict[str, Any] | None) -> str:
    """A ratio, or "=" where the spread is larger than the effect; nothing where the baseline has no time."""
    if found is None:
        return ""
    return f"{found['median']:.2f}x" if found["clear"] else "="


def duration(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def size(number: float) -> str:
    return f"{number / 1e6:,.1f} MB" if number < 1e9 else f"{number / 1e9:,.2f} GB"


def markdown(headings: list[str], rows: Iterable[list[str]]) -> str:
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def of_kind(rows: list[Row], kind: str) -> list[Row]:
    return [row for row in rows if row.get("kind") == kind]


def groups(rows: list[Row], key: Callable[[Row], Any]) -> Iterable[tuple[Any, list[Row]]]:
    return ((name, list(members)) for name, members in groupby(sorted(rows, key=key), key))


def op_tables(rows: list[Row]) -> str:
    text = ""
    for group, members in groups(of_kind(rows, "op"), lambda row: str(row["group"])):
        text += f"\n### {group}\n\nFloor: {duration(members[0]['floor_seconds'])}.\n\n"
        text += markdown(
            [
                "who",
                "median",
                f"speed, {members[0]['baseline']} = 1",
                "time / floor",
                "error",
                "peak memory",
                "first call",
            ],
            (
                [
                    f"**{row['implementation']}**" if row["role"] == "ours" else row["implementation"],
                    duration(row["seconds"]),
                    "1" if row["implementation"] == row["baseline"] else ratio(row["ratio"]),
                    f"{row['seconds'] / row['floor_seconds']:.1f}",
                    f"{row['error']:.1e}" if row.get("error") is not None else "",
                    size(row["peak_memory"]),
                    duration(row["first_call_seconds"]),
                ]
                for row in members
            ),
        )
    return text


def step_tables(rows: list[Row]) -> str:
    text = ""
    for model, members in groups(of_kind(rows, "step"), lambda row: str(row["model"])):
        text += f"\n### A {members[0]['task']}'s whole step, {model}\n\n"
        text += markdown(
            ["who", "tokens/s", "sentences/s", "fangyan is", "of peak FLOP/s", "peak memory"],
            (
                [
                    row["implementation"],
                    f"{row['tokens_per_second']:,.0f}",
                    f"{row['samples_per_second']:,.0f}",
                    "" if row["role"] == "ours" else ratio(row["ours"]),
                    f"{row['flops_utilisation']:.0%}",
                    size(row["peak_memory"]),
                ]
                for row in members
            ),
        )
    until = of_kind(rows, "until")
    if until:
        text += f"\n### Training until dev joint F1 {until[0]['score']}\n\n"
        text += markdown(
            ["who", "training time"], ([row["implementation"], duration(row["seconds"])] for row in until)
        )
    ranks = of_kind(rows, "ranks")
    if ranks:
        text += "\n### fangyan by ranks and ZeRO stage\n\n"
        text += markdown(
            ["ranks", "ZeRO stage", "tokens/s"],
            ([str(row["ranks"]), str(row["stage"]), f"{1 / row['seconds']:,.0f}"] for row in ranks),
        )
    return text


def scaling_table(rows: list[Row]) -> str:
    lines = [
        [f"{row['op']}, {name}", row["dim"], f"{slope:.2f}"]
        for row in of_kind(rows, "scaling")
        for name, slope in row["slopes"].items()
    ]
    return (
        "\n### Growth of cost (exponent)\n\n" + markdown(["what", "with", "exponent"], lines) if lines else ""
    )


def bars(
    path: Path, titled: list[tuple[str, list[Row]]], value: str, text: Callable[[Row], str], label: str
) -> None:
    """Horizontal bars, a panel a group; the text at a bar's end says what may be said of it."""
    if not titled:
        return
    columns = min(3, len(titled))
    lines = -(-len(titled) // columns)
    most = max(len(members) for _, members in titled)
    figure, axes = plt.subplots(
        lines, columns, figsize=(5.2 * columns, lines * (0.6 + 0.24 * most)), squeeze=False
    )
    for axis in axes.flat[len(titled) :]:
        axis.set_visible(False)
    for axis, (title, members) in zip(axes.flat, titled, strict=False):
        names = [row["implementation"] for row in members]
        axis.barh(names, [row[value] for row in members], color=[COLOURS[row["role"]] for row in members])
        axis.invert_yaxis()
        axis.set_title(title, loc="left", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.bar_label(axis.containers[0], labels=[text(row) for row in members], fontsize=7, padding=2)
        axis.margins(x=0.16)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(label, fontsize=9)
    save(figure, path)


def plot(folder: Path, rows: list[Row]) -> None:
    both = [
        row | {"speed": row["ratio"]["median"], "group": row["group"].replace(", forward+backward", "")}
        for row in of_kind(rows, "op")
        if row["pass"] in ("forward+backward", "call") and row["ratio"]
    ]
    titled = [(name, members) for name, members in groups(both, lambda row: str(row["group"]))]
    speed = (
        "speed of forward and backward, the first baseline is 1; =: the spread is larger than the difference"
    )
    bars(folder / "ops.png", titled, "speed", lambda row: ratio(row["ratio"]), speed)
    memory = "peak memory of forward and backward"
    bars(folder / "memory.png", titled, "peak_memory", lambda row: size(row["peak_memory"]), memory)
    steps = list(groups(of_kind(rows, "step"), lambda row: f"{row['task']}, {row['model']}"))
    bars(
        folder / "steps.png",
        steps,
        "tokens_per_second",
        lambda row: f"{row['tokens_per_second']:,.0f}",
        "tokens per second of whole steps, optimizer included",
    )
    plot_scaling(folder, of_kind(rows, "scaling"))


def plot_scaling(folder: Path, rows: list[Row]) -> None:
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
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def page(folder: Path, run: dict[str, Any], rows: list[Row]) -> str:
    machine = run["machine_info"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    peak_rates = ", ".join(f"{flops / 1e9:,.0f} GFLOP/s {dtype}" for dtype, flops in machine["flops"].items())
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    return (
        f"# {machine['name']}\n\n"
        f"`pytest bench/ --results`, {run['datetime'][:10]}, commit {commits}; "
        f"Python {machine['python_version']}, {versions}, {machine['threads']} threads. "
        f"PeakRates measured at the start: {machine['bytes_per_second'] / 1e9:.1f} GB/s, {peak_rates}.\n\n"
        "Medians of rounds in which all take turns. `=`: the spread of the rounds is larger than the "
        "difference. Error: the largest of value and gradients, relative to their norm. First call: "
        "preparation and compilation.\n\n"
        + "".join(f"![{name}]({name}.png)\n" for name in PLOTS if (folder / f"{name}.png").exists())
        + f"\n## Whole steps\n{step_tables(rows)}\n## Ops\n{op_tables(rows)}{scaling_table(rows)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=RESULTS / machine_name())
    folder = parser.parse_args().folder
    run, rows = read(folder)
    plot(folder, rows)
    (folder / "README.md").write_text(page(folder, run, rows))
    print(f"wrote {folder}/README.md and its plots")


if __name__ == "__main__":
    main()
