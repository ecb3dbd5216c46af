"""Measure start-up time, throughput and memory of training against the size of the data.

    python bench/data_size.py --megabytes 10 100 1000 --folder /var/tmp/data --plot data-size.png
    python bench/data_size.py --megabytes 10 100 --tagged --folder /var/tmp/data

Files are made of the sentences inside pycantonese, numbered so that no two are the same, and read, held out
by fraction, tokenized, and trained on for some steps of the random model cantonese-qwen3 (cantonese-electra),
each in a process of its own, twice: the second time the sub-words are in the cache. Prints a Markdown table,
and draws start-up and memory against size.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

STEPS = 10


def sentences() -> list[str]:
    """Return the sentences of Common Voice."""
    folder = Path(find_spec("pycantonese").origin).parent / "data"  # type: ignore[union-attr, arg-type]
    found: list[str] = json.loads((folder / "common_voice" / "sents.json").read_text(encoding="utf-8"))
    return found


def write_data(path: Path, size: int, tagged: bool) -> None:
    """Write documents of ten sentences, or sentences of tagged characters, up to ``size`` bytes."""
    texts, draw, written = sentences(), random.Random(0), 0
    with path.open("wb") as file:
        while written < size:
            chosen = draw.choices(texts, k=1 if tagged else 10)
            text = f"{written}{''.join(chosen).replace(' ', '')}"
            lines = "".join(f"{c}\tt{ord(c) % 9}\n" for c in text) if tagged else text
            written += file.write(f"{lines}\n".encode())


def measure(path: Path, tagged: bool) -> dict[str, float]:
    """Return seconds to the first step, sub-words per second and peak memory of this process, with a file."""
    from fangyan.device import memory_in_use, peak_memory, reset_peak_memory
    from fangyan.distributed.process_group import start_distributed
    from fangyan.recipe import parse_recipe
    from fangyan.training.trainer import Trainer

    data = {"format": "conll" if tagged else "text", "train": str(path), "dev": 0.001}
    content = {
        "name": "size",
        "data": data | {"cache_dir": str(path.with_name("cache"))},
        "task": {"name": "token_classification" if tagged else "causal_lm"},
        "model": {"path": "cantonese-electra" if tagged else "cantonese-qwen3", "pretrained": False},
        "train": {"epochs": 1},
    }
    recipe = parse_recipe(content)
    start_distributed()
    # Libraries and the model are no data: both are loaded here before.
    task = recipe.task.build({"train": []}, recipe.data)
    recipe.model.load(task.auto_model, 0, task.model_kwargs(), task.tokenizer_kwargs)
    reset_peak_memory()
    before = memory_in_use()
    start = time.perf_counter()
    trainer = Trainer(recipe)
    started = time.perf_counter() - start
    at_start = peak_memory() - before
    trainer.start_engine()
    trainer.evaluate("dev")
    batches = trainer.batches[0]
    trainer.train_step(batches[0], 0)
    start = time.perf_counter()
    tokens = 0
    for step in range(1, min(STEPS, len(batches))):
        trainer.train_step(batches[step], step)
        tokens += int(trainer.lengths[batches[step]].sum())
    return {
        "sub-words, million": int(trainer.lengths.sum()) / 1e6,
        "start-up, s": started,
        "start-up memory, MB": at_start / 1e6,
        "memory with the model's step, MB": (peak_memory() - before) / 1e6,
        "sub-words per second": tokens / (time.perf_counter() - start),
    }


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw start-up seconds and memory against the size of the data."""
    import matplotlib.pyplot as plt

    figure, (seconds, memory) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    sizes = [row["data, MB"] for row in rows if row["cached"] == "no"]
    for cached, label in (("no", "first time"), ("yes", "sub-words in the cache")):
        chosen = [row for row in rows if row["cached"] == cached]
        seconds.plot(sizes, [row["start-up, s"] for row in chosen], marker="o", label=label)
        memory.plot(sizes, [row["start-up memory, MB"] for row in chosen], marker="o", label=label)
    largest = [row["memory with the model's step, MB"] for row in rows if row["cached"] == "no"]
    memory.plot(sizes, largest, marker="s", label="with training steps, first time")
    seconds.set_ylabel("start-up, seconds")
    memory.set_ylabel("peak beyond libraries and model, MB")
    seconds.set_yscale("log")
    memory.set_ylim(0, 1.3 * max(largest))
    for axes in (seconds, memory):
        axes.set(xscale="log", xlabel="data, MB")
        axes.legend(loc="upper left")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run every size in new processes, print the table and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--folder", type=Path, required=True, help="for the files; a new one")
    parser.add_argument("--tagged", action="store_true", help="CoNLL in place of raw text")
    parser.add_argument("--plot", type=Path, help="a PNG")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.tagged)))
        return
    options.folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for i, megabytes in enumerate(options.megabytes):
        path = options.folder / "data.txt"
        write_data(path, megabytes * 1_000_000, options.tagged)
        for cached in ("no", "yes"):
            command = [sys.executable, __file__, "--folder", str(options.folder), "--one", str(path)]
            command += ["--tagged"] * options.tagged
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            result = {"data, MB": megabytes, "cached": cached, **json.loads(output.splitlines()[-1])}
            rows.append(result)
            if i == 0 and cached == "no":
                print("| " + " | ".join(result) + " |\n|" + "---:|" * len(result))
            cells = (
                f"{v:,.1f}" if isinstance(v, float) and v < 10 else f"{v:,.0f}" if v != cached else v
                for v in result.values()
            )
            print("| " + " | ".join(cells) + " |", flush=True)
        shutil.rmtree(options.folder / "cache", ignore_errors=True)
    shutil.rmtree(options.folder)
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
