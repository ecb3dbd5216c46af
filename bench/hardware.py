"""What models take of memory, by ``fangyan estimate-memory``, for the tables of docs/hardware.md.

    python bench/hardware.py --folder /var/tmp/models

Writes models of BERT-base's and Qwen3's shapes with random weights (one at a time, 6 GB at most), and
estimates each way of training in a process of its own, on this machine. What a card would hold is the
estimate without what stays in the CPU's memory there: Python and its libraries, and an export. Prints a
Markdown table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from random_models import bert_base, qwen3, write_random

TAGGER = ["cantonese-pos", "optimizer={lr: 3.0e-5}", "data.test=null"]
# Few sentences to evaluate on: what a step takes is asked for, and 8 billion parameters are slow here.
LM = [
    "cantonese-lm",
    "adaptation={name: full}",
    "data.test=null",
    "data.dev=0.002",
    "train.batch_tokens=1024",
]
BF16, BITS8 = "engine.precision=bf16", "optimizer.name=adamw8bit"
LORA, NF4 = "adaptation={name: lora, rank: 16}", "adaptation={name: lora, rank: 16, quantization: nf4}"

# Eight billion parameters take too long here: what each layer takes is what these two differ by.
FEW, MORE, ALL = 4, 8, 36

MODELS: dict[str, Any] = {
    "BERT-base": bert_base,
    "Qwen3 0.6B": lambda: qwen3(1024, 3072, 28, 16, True),
    "Qwen3 1.7B": lambda: qwen3(2048, 6144, 28, 16, True),
    f"Qwen3 8B, {FEW} layers": lambda: qwen3(4096, 12288, FEW, 32, False),
    f"Qwen3 8B, {MORE} layers": lambda: qwen3(4096, 12288, MORE, 32, False),
}
# Model, what is trained, recipe with fields, ranks.
WAYS: list[tuple[str, str, list[str], int]] = [
    ("BERT-base", "all, fp32", [*TAGGER, "train.batch_tokens=2048"], 1),
    ("BERT-base", "all, bf16", [*TAGGER, BF16, "train.batch_tokens=2048"], 1),
    ("BERT-base", "all, bf16, 8-bit AdamW", [*TAGGER, BF16, BITS8, "train.batch_tokens=2048"], 1),
    ("BERT-base", "all, bf16, 16,384 tokens", [*TAGGER, BF16, "train.batch_tokens=16384"], 1),
    ("Qwen3 0.6B", "all, bf16", [*LM, BF16], 1),
    ("Qwen3 0.6B", "all, bf16, 8-bit AdamW", [*LM, BF16, BITS8], 1),
    ("Qwen3 0.6B", "all, bf16, 8 ranks, ZeRO 2", [*LM, BF16, "engine.zero_stage=2"], 8),
    ("Qwen3 0.6B", "LoRA, bf16", [*LM, BF16, LORA], 1),
    ("Qwen3 0.6B", "LoRA on NF4", [*LM, BF16, NF4], 1),
    ("Qwen3 1.7B", "LoRA, bf16", [*LM, BF16, LORA], 1),
    ("Qwen3 1.7B", "LoRA on NF4", [*LM, BF16, NF4], 1),
    (f"Qwen3 8B, {FEW} layers", "LoRA on NF4", [*LM, BF16, NF4], 1),
    (f"Qwen3 8B, {MORE} layers", "LoRA on NF4", [*LM, BF16, NF4], 1),
]
COLUMNS = ("weights", "gradients, states", "a micro-batch", "on a card", "on this machine")


def estimate(arguments: list[str], ranks: int) -> dict[str, float]:
    """Return GB of one rank: the estimate's peak here, and its parts that a card would hold."""
    from fangyan.distributed.process_group import start_distributed
    from fangyan.recipe import load_recipe
    from fangyan.training.memory import estimate_memory
    from fangyan.training.workload import Workload

    loaded = load_recipe(arguments[0], arguments[1:])
    start_distributed()
    found = estimate_memory(Workload(loaded), ranks)
    items = {item.name: item.nbytes for item in found.items if item.name != "Python, libraries, data"}
    weights = items.pop("weights")
    evaluation = found.after_epoch[0].nbytes
    return {
        "weights": weights / 1e9,
        "gradients, states": sum(items.values()) / 1e9,
        "a micro-batch": found.step.nbytes / 1e9,
        "on a card": (weights + sum(items.values()) + max(found.step.nbytes, evaluation)) / 1e9,
        "on this machine": found.peak / 1e9,
    }


def write_tokenizer(folder: Path, is_tagger: bool) -> None:
    """Write a tokenizer that comes inside a package: lengths are those of characters."""
    from fangyan.models.packaged import PACKAGED

    package = PACKAGED["cantonese-electra" if is_tagger else "cantonese-qwen3"](False)
    package.tokenizer.save_pretrained(folder)


def main() -> None:
    """Estimate every way in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the models; a new one")
    parser.add_argument("--only", default="", help="the models whose names contain this")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        _, _, arguments, ranks = WAYS[int(options.way)]
        print(json.dumps(estimate([*arguments, f"model.path={options.folder}"], ranks)))
        return
    print("| model | trained | " + " | ".join(COLUMNS) + " |\n|---|---|" + "---:|" * len(COLUMNS))
    found: dict[tuple[str, str], dict[str, float]] = {}
    for name in MODELS:
        if options.only in name:
            write_random(MODELS[name], options.folder)
            write_tokenizer(options.folder, name == "BERT-base")
            for i, (model, what, _, _) in enumerate(WAYS):
                if model == name:
                    found[model, what] = in_a_process(options.folder, i)
                    print_row(model, what, found[model, what])
            shutil.rmtree(options.folder)
    few = found.get((f"Qwen3 8B, {FEW} layers", "LoRA on NF4"))
    more = found.get((f"Qwen3 8B, {MORE} layers", "LoRA on NF4"))
    if few and more:
        times = (ALL - MORE) / (MORE - FEW)
        row = {name: more[name] + times * (more[name] - few[name]) for name in COLUMNS[:-1]}
        print_row(f"Qwen3 8B, all {ALL} layers", "LoRA on NF4", row)


def in_a_process(folder: Path, way: int) -> dict[str, float]:
    """Return an estimate, made by a process of its own."""
    command = [sys.executable, __file__, "--folder", str(folder), "--way", str(way)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    row: dict[str, float] = json.loads(output.splitlines()[-1])
    return row


def print_row(model: str, what: str, row: dict[str, float]) -> None:
    """Print a row of the table."""
    cells = " | ".join(f"{row[column]:.1f}" if column in row else "–" for column in COLUMNS)
    print(f"| {model} | {what} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
