"""Slots of German and four of its dialects (xSID 0.7): trained on one, on the others, on all, and on all with
the name of its variety before each sentence.

Each variety has 300 translated sentences to train on, of which a fifth picks the epoch, and 500 others to
test on. The tagger starts from nothing: its word forms are those of the training sentences.

    git clone https://github.com/mainlp/xsid
    python bench/xsid_sources.py xsid/data/xSID-0.7 --results xsid.jsonl

A result that is in the file is not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

VARIETIES = {
    "de": "German",
    "de-ba": "Upper Bavarian",
    "de-muc": "Bavarian of Munich",
    "de-st": "South Tyrolean",
    "gsw": "Swiss German",
}
METRIC = "entity_f1"


def recipe(data: Path, trained: list[str], run: Path, seed: int, prefix: bool = False) -> dict[str, Any]:
    """Return a recipe that trains on some varieties and tests on all."""

    def source(name: str) -> dict[str, Any]:
        columns = {"token": 2, "tag": 4}
        own = {"name": name, "format": "conll", "columns": columns}
        if name in trained:
            files = {part: str(data / f"{name}.{part}.conll") for part in ("valid", "test")}
            return {**own, "train": files["valid"], "dev": 0.2, "test": files["test"]}
        return {**own, "train": str(data / f"{name}.test.conll")}

    zero_shot = [name for name in VARIETIES if name not in trained]
    return {
        "name": "xsid",
        "run_dir": str(run),
        "seed": seed,
        "data": {"sources": [source(name) for name in VARIETIES], "zero_shot": zero_shot, "prefix": prefix},
        "task": {"scheme": "iob2"},
        "model": {"path": "scratch", "size": "small"},
        "optimizer": {"lr": 2.0e-3},
        # As many steps with one variety as with all.
        "train": {"epochs": round(100 / len(trained)), "batch_tokens": 850, "log_every": 100},
    }


def measure(data: Path, seeds: int, results: Path) -> None:
    """Append what is not measured yet to a file of results, one line each."""
    known = {(row["kind"], row["variety"], row["seed"]) for row in rows_of(results)}
    for seed in range(seeds):
        for kind, variety, trained in _trials():
            if (kind, variety, seed) in known:
                continue
            scores = train(data, trained, seed, kind == "told")
            row = {"kind": kind, "variety": variety, "seed": seed, "test": scores}
            print(json.dumps(row), flush=True)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def _trials() -> Iterator[tuple[str, str, list[str]]]:
    """Yield kinds of training, the variety that they are about, and those trained on."""
    for variety in VARIETIES:
        yield "one", variety, [variety]
        yield "others", variety, [name for name in VARIETIES if name != variety]
    for kind in ("all", "told"):
        yield kind, "", list(VARIETIES)


def train(data: Path, trained: list[str], seed: int, prefix: bool) -> dict[str, float]:
    """Train, with the name of its variety before each text or not; return the metric on each test split."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        content = recipe(data, trained, folder / "run", seed, prefix)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        command = [sys.executable, "-m", "fangyan", "train", str(folder / "recipe.yaml")]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    best = {row.get("split"): row for row in map(json.loads, lines)}
    return {name: best[f"test/{name}-best"][METRIC] for name in VARIETIES}


def rows_of(results: Path) -> list[dict[str, Any]]:
    """Return what a file of results has."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.is_file() else []
    return [json.loads(line) for line in lines]


def table(results: Path) -> Table:
    """Return the mean and standard deviation of the seeds: tested on a variety, trained on which."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows_of(results):
        for name, score in row["test"].items():
            if row["variety"] in ("", name):
                found.setdefault((row["kind"], name), []).append(score)
    shown = Table("tested on", "trained on it alone", "the other four", "all five", "all, told which")
    for name, title in VARIETIES.items():
        shown.add_row(
            title, *(_cell(found.get((kind, name), [])) for kind in ("one", "others", "all", "told"))
        )
    return shown


def _cell(scores: list[float]) -> str:
    if len(scores) < 2:
        return "–"
    return f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}"


def main() -> None:
    """Measure, or show what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder of xSID's files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("xsid.jsonl"))
    arguments = parser.parse_args()
    measure(arguments.data, arguments.seeds, arguments.results)
    Console().print(table(arguments.results))


if __name__ == "__main__":
    main()
