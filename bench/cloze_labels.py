"""What words for classes are worth with few labels: questions of Hong Kong Cantonese (cantonese-questions).

A new head and a cloze (PET) learn from the same model, cantonese-electra after cantonese-mlm, from the same
utterances, as many of each class. Test is that of the recipe, dev a sample of its dev.

    python bench/cloze_labels.py --results cloze.jsonl

A result that is in the file is not measured again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fangyan
from fangyan.data.example import Example
from fangyan.recipe import load_recipe, parse_recipe
from rich.console import Console
from rich.table import Table

from fangyan_bench.rows import add_row, mean_cell, rows_of

METRIC = "macro_f1"
# Passes over so many utterances.
EPOCHS = {10: 40, 40: 30, 160: 15}
DEV = 200
TASKS = {
    "head": ("a new head", {"name": "sequence_classification"}),
    "cloze": (
        "a cloze",
        {"name": "cloze", "pattern": "{text}{gap}", "words": {"question": "？", "statement": "！"}},
    ),
}


def measure(folder: Path, seeds: Sequence[int], results: Path) -> None:
    """Append what is not measured yet to a file of results, one line each."""
    reader = folder / "cantonese-mlm"
    if not (reader / "model/config.json").is_file():
        shutil.rmtree(reader, ignore_errors=True)
        _train(load_recipe("cantonese-mlm", [f"run_dir={reader}"]))
    splits = load_recipe("cantonese-questions").data.load(0)
    _write(folder / "test.jsonl", splits["test"])
    known = {(row["task"], row["number"], row["seed"]) for row in rows_of(results)}
    for seed in seeds:
        _write(folder / "dev.jsonl", random.Random(seed).sample(list(splits["dev"]), DEV))
        for number in EPOCHS:
            _write(folder / "train.jsonl", _balanced(splits["train"], number, seed))
            for name, (_, task) in TASKS.items():
                if (name, number, seed) in known:
                    continue
                result = _train(parse_recipe(_recipe(folder, reader / "model", task, number, seed)))
                row: dict[str, Any] = {"task": name, "number": number, "seed": seed}
                row["before"] = result.before["test"][METRIC] if name == "cloze" else None
                row["test"] = result.after["test"][METRIC]
                add_row(results, row)


def _recipe(folder: Path, model: Path, task: dict[str, Any], number: int, seed: int) -> dict[str, Any]:
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    return {
        "name": "cloze-labels",
        "run_dir": str(run),
        "seed": seed,
        "task": task,
        "data": {
            "format": "jsonl",
            **{split: str(folder / f"{split}.jsonl") for split in ("train", "dev", "test")},
        },
        "model": {"path": str(model)},
        "optimizer": {"lr": 5.0e-4, "layer_decay": 0.85},
        "train": {"epochs": EPOCHS[number], "batch_tokens": 256, "log_every": 1000, "early_stopping": 10},
    }


def _train(recipe: Any) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return fangyan.train(recipe)


def _balanced(examples: Sequence[Example], number: int, seed: int) -> list[Example]:
    """Return as many utterances of each class, none of them twice."""
    by_text = {example.fields["text"]: example for example in examples}
    drawn = random.Random(seed).sample(list(by_text.values()), len(by_text))
    labels = sorted({example.fields["label"] for example in drawn})
    return [
        example
        for label in labels
        for example in [own for own in drawn if own.fields["label"] == label][: number // len(labels)]
    ]


def _write(file: Path, examples: Sequence[Example]) -> None:
    file.write_text(
        "".join(f"{json.dumps(dict(example.fields), ensure_ascii=False)}\n" for example in examples),
        encoding="utf-8",
    )


def table(results: Path) -> Table:
    """Return the mean test scores of the seeds, and their standard deviations."""
    rows = rows_of(results)
    shown = Table("labelled utterances", "none", *(str(number) for number in EPOCHS))
    for name, (title, _) in TASKS.items():
        own = [row for row in rows if row["task"] == name]
        before = [row["before"] for row in own if row["before"] is not None]
        cells = [mean_cell([row["test"] for row in own if row["number"] == number]) for number in EPOCHS]
        shown.add_row(title, f"{before[0]:.1f}" if before else "–", *cells)
    return shown


def main() -> None:
    """Measure, or show what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("runs/cloze-labels"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    measure(arguments.folder, arguments.seeds, arguments.results)
    Console().print(table(arguments.results))


if __name__ == "__main__":
    main()
