"""Slots of German and four of its dialects (xSID 0.7): trained on one, on the others, on all, and on all with
the name of its variety before each sentence; and on all where one has few sentences, at several temperatures.

Each variety has 300 translated sentences to train on, of which a fifth picks the epoch, and 500 others to
test on; where it has few, every fifth of the 300. The tagger starts from nothing: its word forms are those of
the training sentences.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from fangyan_bench.rows import add_row, rows_of

VARIETIES = {
    "de": "German",
    "de-ba": "Upper Bavarian",
    "de-muc": "Bavarian of Munich",
    "de-st": "South Tyrolean",
    "gsw": "Swiss German",
}
METRIC = "entity_f1"
# Sentences where there are few, and how they are mixed with those of the others.
FEW = 60
TEMPERATURES = (1, 3, 100)


@dataclass(frozen=True)
class Trial:
    """What is trained on.

    Attributes:
        kind: of training, as the tables name it.
        variety: that it is about; empty where it is about all.
        trained: the varieties that are trained on.
        few: whether ``variety`` has few sentences.
        prefix: whether the name of its variety is before each sentence.
        temperature: of the mixture.
    """

    kind: str
    variety: str
    trained: tuple[str, ...]
    few: bool = False
    prefix: bool = False
    temperature: float = 1.0


def trials() -> Iterator[Trial]:
    """Yield what is measured with each seed."""
    everything = tuple(VARIETIES)
    for variety in VARIETIES:
        yield Trial("one", variety, (variety,))
        yield Trial("others", variety, tuple(name for name in VARIETIES if name != variety))
        yield Trial("few", variety, (variety,), few=True)
        for temperature in TEMPERATURES:
            yield Trial(f"few/{temperature}", variety, everything, few=True, temperature=temperature)
    yield Trial("all", "", everything)
    yield Trial("told", "", everything, prefix=True)


def recipe(data: Path, trial: Trial, folder: Path, seed: int) -> dict[str, Any]:
    """Return a recipe that tests on all varieties; its run and the few sentences are in a folder."""

    def source(name: str) -> dict[str, Any]:
        columns = {"token": 2, "tag": 4}
        own = {"name": name, "format": "conll", "columns": columns}
        test = data / f"{name}.test.conll"
        if name not in trial.trained:
            return {**own, "train": str(test)}
        train = data / f"{name}.valid.conll"
        if trial.few and name == trial.variety:
            sentences = train.read_text(encoding="utf-8").strip().split("\n\n")
            sentences = sentences[:: len(sentences) // FEW]
            train = folder / "few.conll"
            train.write_text("\n\n".join(sentences) + "\n\n", encoding="utf-8")
        return {**own, "train": str(train), "dev": 0.2, "test": str(test)}

    return {
        "name": "xsid",
        "run_dir": str(folder / "run"),
        "seed": seed,
        "data": {
            "sources": [source(name) for name in VARIETIES],
            "zero_shot": [name for name in VARIETIES if name not in trial.trained],
            "prefix": trial.prefix,
            "temperature": trial.temperature,
        },
        "task": {"scheme": "iob2"},
        "model": {"path": "scratch", "size": "small"},
        "optimizer": {"lr": 2.0e-3},
        # As many steps with one variety as with all. Few sentences alone are seen about as often as
        # at the highest temperature.
        "train": {"epochs": round(100 / len(trial.trained)), "batch_tokens": 850, "log_every": 100},
    }


def measure(data: Path, seeds: int, results: Path) -> None:
    """Append what is not measured yet to a file of results, one line each."""
    known = {(row["kind"], row["variety"], row["seed"]) for row in rows_of(results)}
    for seed in range(seeds):
        for trial in trials():
            if (trial.kind, trial.variety, seed) in known:
                continue
            row = {
                "kind": trial.kind,
                "variety": trial.variety,
                "seed": seed,
                "test": train(data, trial, seed),
            }
            add_row(results, row)


def train(data: Path, trial: Trial, seed: int) -> dict[str, float]:
    """Train; return the metric on each test split."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        content = recipe(data, trial, folder, seed)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        command = [sys.executable, "-m", "fangyan", "train", str(folder / "recipe.yaml")]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    best = {row.get("split"): row for row in map(json.loads, lines)}
    return {name: best[f"test/{name}-best"][METRIC] for name in VARIETIES}


def tables(results: Path) -> list[Table]:
    """Return the means and standard deviations of the seeds: tested on a variety, trained on which."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows_of(results):
        for name, score in row["test"].items():
            if row["variety"] in ("", name):
                found.setdefault((row["kind"], name), []).append(score)
    columns = {
        "one": "trained on it alone",
        "others": "the other four",
        "all": "all five",
        "told": "all, told which",
    }
    few = {"few": f"{FEW} sentences of it alone"}
    few |= {f"few/{t}": f"and the other four, temperature {t}" for t in TEMPERATURES}
    shown = []
    for kinds in (columns, few):
        shown.append(Table("tested on", *kinds.values()))
        for name, title in VARIETIES.items():
            shown[-1].add_row(title, *(_cell(found.get((kind, name), [])) for kind in kinds))
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
    Console().print(*tables(arguments.results))


if __name__ == "__main__":
    main()
