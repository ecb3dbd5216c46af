"""The largest causal model whose LoRA trains within a card's memory; every try is a process of its own.

    python -m fangyan_bench.steps.largest_model --implementation fangyan --base nf4 --layers 36
        --gigabytes 24 RECIPE [key=value ...]

runs on a GPU, with bench/ on the Python path, and exits with 3 where the memory was not enough.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from fangyan_bench.harness.machine import BENCH, ROOT, device
from fangyan_bench.steps.common import PADDED_LENGTH
from fangyan_bench.steps.lora_lm import OURS, SIZES, LoraLm
from fangyan_bench.trainer_access import load_setup

NOT_ENOUGH = 3  # exit status
STEPS = 2  # the second has the optimizer's states


def largest_model(fits: Callable[[int], bool], step: int, most: int) -> int:
    """Return the largest number of layers that fits, or 0, by doubling and then halving.

    Args:
        fits: whether a number of layers does; if it does, so do all smaller ones.
        step: what the number is a multiple of.
        most: its upper limit.
    """
    low, high = 0, step
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + step)
    while high - low > step:
        middle = (low + high) // 2 // step * step
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def fits_in_memory(
    implementation: str, base: str, layers: int, gigabytes: float, recipe: str, overrides: Sequence[str]
) -> bool:
    """Return whether some steps of a model with so many layers of an 8B model's size end within the memory.

    Raises:
        RuntimeError: if they end in another way.
    """
    command = [sys.executable, "-m", "fangyan_bench.steps.largest_model", "--implementation", implementation]
    command += ["--base", base, "--layers", str(layers), "--gigabytes", str(gigabytes), recipe, *overrides]
    paths = [BENCH, ROOT / "kernels", ROOT / "trainer", os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, NOT_ENOUGH):
        raise RuntimeError(f"{implementation}, {base}, {layers} layers: {done.stderr[-2000:]}")
    return done.returncode == 0


def parameters(layers: int) -> int:
    """Return the parameters of a model with so many layers, embeddings and head included."""
    config = Qwen3Config(**SIZES["8B"].config | {"num_hidden_layers": layers})
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


def main() -> None:
    """Train some steps of one model, and exit with whether its memory was enough."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--implementation", required=True)
    parser.add_argument("--base", choices=("bf16", "nf4"), required=True)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--gigabytes", type=float, required=True)
    arguments = parser.parse_args()
    size = SIZES["8B" if arguments.base == "bf16" else "8B, NF4"]
    size = replace(size, config=size.config | {"num_hidden_layers": arguments.layers})
    setup = load_setup(arguments.recipe, arguments.overrides, PADDED_LENGTH)
    if device() == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, arguments.gigabytes * 2**30 / total))
    try:
        model = LoraLm(setup, size, fused=arguments.implementation == OURS)
        trained: list[int] = []

        def observe(tokens: int, _rows: int) -> bool:
            trained.append(tokens)
            return False

        model.train(STEPS, observe)
        assert len(trained) == STEPS
    except torch.OutOfMemoryError:
        sys.exit(NOT_ENOUGH)


if __name__ == "__main__":
    main()
