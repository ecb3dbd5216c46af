"""What labels are worth: a tagger of HKCanCor (cantonese-electra, joint words and tags) from few sentences.

Sentences to label are drawn at random, or selected by the model of the step before (50 at random, then so
many that there are 100, and so on). A model labels what is left by itself, or reads all sentences before it
learns from the labels (masked language modelling). Test is that of cantonese-pos, dev a sample of its dev.

    python bench/learning_curves.py --results curves.jsonl

A result that is in the file is not measured again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fangyan
from fangyan.data.example import Example
from fangyan.recipe import load_recipe, parse_recipe
from rich.console import Console
from rich.table import Table

from fangyan_bench.rows import add_row, mean_cell, rows_of

METRIC = "joint_f1"
# Passes over so many sentences; as many for each way to choose them.
EPOCHS = {50: 40, 100: 30, 300: 16, 1000: 8, 3000: 5}
# Beyond, labels of people are not few.
LARGEST_SELF, LARGEST_SELECTED = 300, 1000
# Sentences that say when to stop, and which round of self-training is best.
DEV = 200
KINDS = {
    "random": "at random",
    "entropy": "selected, entropy",
    "badge": "selected, BADGE",
    "random/self": "at random, and self-trained",
    "badge/self": "selected, BADGE, and self-trained",
    "random/read": "at random, after reading",
}
# Passes over the sentences without labels.
READING_EPOCHS = 10


class Curves:
    """Runs of all sizes of a seed.

    Args:
        folder: of files and runs; models that select are kept in it.
        seed: of what is drawn, and of the runs.
    """

    def __init__(self, folder: Path, seed: int):
        self.folder, self.seed = folder / str(seed), seed
        self.folder.mkdir(parents=True, exist_ok=True)
        splits = load_recipe("cantonese-pos").data.load(0)
        # Of sentences that are there several times one is labelled.
        pool = list({example.fields["tokens"]: example for example in splits["train"]}.values())
        self.pool = random.Random(seed).sample(pool, len(pool))
        self._write(
            self.folder / "dev.jsonl", random.Random(seed).sample(list(splits["dev"]), DEV), tags=True
        )
        self._write(self.folder / "test.jsonl", splits["test"], tags=True)

    def measure(self, kind: str, number: int) -> dict[str, Any]:
        """Train on so many sentences; return the scores, and how many characters are labelled."""
        choice, *ways = kind.split("/")
        chosen = self._chosen(choice, number)
        labelled = [self.pool[i] for i in chosen]
        run = self._run(kind, number)
        self._write(run.with_suffix(".train.jsonl"), labelled, tags=True)
        recipe = self._recipe(run, number)
        if "read" in ways:
            recipe["model"] = {"path": str(self._reader())}
        if "self" in ways:
            rest = [self.pool[i] for i in sorted(set(range(len(self.pool))) - set(chosen))]
            self._write(run.with_suffix(".rest.jsonl"), rest, tags=False)
            recipe["data"]["unlabelled"] = str(run.with_suffix(".rest.jsonl"))
            recipe["self_training"] = {"rounds": 2, "threshold": 0.7}
        shutil.rmtree(run, ignore_errors=True)
        with contextlib.redirect_stdout(io.StringIO()):
            result = fangyan.train(parse_recipe(recipe))
        return {
            "characters": sum(len(example.fields["tokens"]) for example in labelled),
            "best": result.folder.name,
            **{split: result.after[split][METRIC] for split in ("dev", "test")},
        }

    def _chosen(self, kind: str, number: int) -> list[int]:
        """Return which sentences are labelled: those of the step before, and more."""
        sizes = list(EPOCHS)
        before = sizes[: sizes.index(number)]
        if kind == "random" or not before:
            return list(range(number))
        earlier = self._chosen(kind, before[-1])
        model = self._run(kind if len(before) > 1 else "random", before[-1])
        if not (model / "model/config.json").is_file():
            raise SystemExit(f"{model}: no model that selects, expected {before[-1]} sentences first")
        left = sorted(set(range(len(self.pool))) - set(earlier))
        found = fangyan.select(
            model, [self.pool[i] for i in left], number - before[-1], kind, self.seed, say=lambda _: None
        )
        return earlier + [left[i] for i in found]

    def _reader(self) -> Path:
        """Return an encoder that has read all sentences, which is trained if there is none."""
        run = self.folder / "reader"
        if not (run / "model/config.json").is_file():
            shutil.rmtree(run, ignore_errors=True)
            text = self.folder / "pool.txt"
            lines = ["".join(example.fields["tokens"]) for example in self.pool]
            text.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            recipe = load_recipe(
                "cantonese-mlm",
                [
                    f"run_dir={run}",
                    f"seed={self.seed}",
                    f"data={{format: text, train: {text}, dev: 0.05}}",
                    f"train.epochs={READING_EPOCHS}",
                ],
            )
            with contextlib.redirect_stdout(io.StringIO()):
                fangyan.train(recipe)
        return run / "model"

    def _run(self, kind: str, number: int) -> Path:
        return self.folder / f"{kind.replace('/', '-')}-{number}"

    def _recipe(self, run: Path, number: int) -> dict[str, Any]:
        return {
            "name": "curves",
            "run_dir": str(run),
            "seed": self.seed,
            "data": {
                "format": "jsonl",
                "tokens": "characters",
                "train": str(run.with_suffix(".train.jsonl")),
                "dev": str(self.folder / "dev.jsonl"),
                "test": str(self.folder / "test.jsonl"),
            },
            "model": {"path": "cantonese-electra"},
            "optimizer": {"lr": 1.5e-3, "layer_decay": 0.85},
            "train": {
                "epochs": EPOCHS[number],
                "batch_tokens": 512,
                "token_masking": 0.05,
                "log_every": 1000,
                "early_stopping": 5,
            },
        }

    def _write(self, file: Path, examples: Sequence[Example], tags: bool) -> None:
        fields = ("tokens", "tags") if tags else ("tokens",)
        lines = [
            json.dumps({name: example.fields[name] for name in fields}, ensure_ascii=False)
            for example in examples
        ]
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def measure(
    folder: Path, kinds: Sequence[str], numbers: Sequence[int], seeds: Sequence[int], results: Path
) -> None:
    """Append what is not measured yet to a file of results, one line each."""
    known = {(row["kind"], row["number"], row["seed"]) for row in rows_of(results)}
    for seed in seeds:
        curves = Curves(folder, seed)
        for kind in kinds:
            for number in numbers:
                is_random = kind.startswith(("entropy", "badge")) and number == min(EPOCHS)
                if (kind, number, seed) in known or is_random or number > _largest(kind):
                    continue
                row = {"kind": kind, "number": number, "seed": seed, **curves.measure(kind, number)}
                add_row(results, row)


def _largest(kind: str) -> int:
    """Return the most sentences that are labelled."""
    if "/" in kind:
        return LARGEST_SELF
    return max(EPOCHS) if kind == "random" else LARGEST_SELECTED


def table(results: Path) -> Table:
    """Return the mean test scores of the seeds, and their standard deviations."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows_of(results):
        found.setdefault((row["kind"], row["number"]), []).append(row)
    shown = Table("labelled sentences", *(f"{number:,}" for number in EPOCHS))
    for kind, title in KINDS.items():
        cells = [mean_cell([row["test"] for row in found.get((kind, number), [])]) for number in EPOCHS]
        if any(cell != "–" for cell in cells):
            shown.add_row(title, *cells)
        if "/" not in kind and any(cell != "–" for cell in cells):
            sizes = [[row["characters"] for row in found.get((kind, number), [])] for number in EPOCHS]
            shown.add_row("  characters", *(f"{statistics.mean(own):,.0f}" if own else "–" for own in sizes))
    return shown


def main() -> None:
    """Measure, or show what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--numbers", type=int, nargs="*", default=list(EPOCHS), choices=list(EPOCHS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("runs/learning-curves"))
    arguments = parser.parse_args()
    measure(arguments.folder, arguments.kinds, arguments.numbers, arguments.seeds, arguments.results)
    Console().print(table(arguments.results))


if __name__ == "__main__":
    main()
