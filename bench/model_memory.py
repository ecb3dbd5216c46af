"""Measure the memory that loading a model takes, against what its weights take.

    python bench/model_memory.py --folder /var/tmp/model

Writes random bfloat16 weights of TinyLlama's shape (1.1 billion, in shards), and loads them in a process of
its own for each way of training, as a run does up to its engine. "Anonymous" is what the process allocates;
"mapped" are pages of the files, which the system takes back where memory is short. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from random_models import tiny_llama, write_random

WAYS = {
    "fp32, full": ([], "fp32"),
    "bf16, full": ([], "bf16"),
    "fp32, LoRA on NF4": (["nf4"], "fp32"),
    "bf16, LoRA on NF4": (["nf4"], "bf16"),
}


def resident() -> tuple[int, int]:
    """Return the bytes of this process that are anonymous, and those of mapped files."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    anonymous, mapped = (int(status.partition(f"{key}:")[2].split()[0]) for key in ("RssAnon", "RssFile"))
    return anonymous * 1024, mapped * 1024


def measure(folder: Path, way: str) -> dict[str, float]:
    """Load as a run does; return peaks in GB, above what the libraries take, and those of the weights."""
    import fangyan.device  # noqa: F401  (before PEFT)
    import torch
    from fangyan.adaptation.full import Full
    from fangyan.adaptation.lora import Lora
    from fangyan.models.loading import load_as_stored, silence_transformers
    from fangyan.models.structure import fingerprint
    from transformers import AutoConfig, AutoModelForCausalLM

    quantization, precision = WAYS[way]
    if quantization:
        import bitsandbytes  # noqa: F401
        import peft  # noqa: F401
    silence_transformers()
    start = resident()
    peaks = list(start)
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for i, value in enumerate(resident()):
                peaks[i] = max(peaks[i], value)
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    model = load_as_stored(AutoModelForCausalLM, folder, AutoConfig.from_pretrained(folder))
    fingerprint(model, [])
    adaptation = Lora(rank=8, quantization="nf4") if quantization else Full()
    model = adaptation.apply(
        model,
        peft_task_type="CAUSAL_LM",
        new_head=None,
        total_steps=1,
        activation_dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
        kernels="auto",
    )
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        "weights, GB": weights / 1e9,
        "peak anonymous, GB": (peaks[0] - start[0]) / 1e9,
        "peak mapped, GB": (peaks[1] - start[1]) / 1e9,
        "seconds": seconds,
    }


def main() -> None:
    """Measure every way in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the model, 2.2 GB; a new one")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.folder, options.way)))
        return
    write_random(tiny_llama, options.folder)
    for i, way in enumerate(WAYS):
        command = [sys.executable, __file__, "--folder", str(options.folder), "--way", way]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        result = json.loads(output.splitlines()[-1])
        if i == 0:
            print("| training | " + " | ".join(result) + " |\n|---|" + "---:|" * len(result))
        print(f"| {way} | " + " | ".join(f"{value:.2f}" for value in result.values()) + " |", flush=True)
    shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
