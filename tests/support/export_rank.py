"""A rank that exports a model of a quarter of a gigabyte, and measures what that takes of memory."""

import json
import os
from pathlib import Path

import torch
from fangyan.distributed.process_group import start_distributed
from fangyan.inference.export import export
from fangyan.recipe import load_recipe
from fangyan.training.engine import build_engine
from forked_command import of_ranks
from model_families import BY_NAME, save
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

SHARD_SIZE = 80_000_000


def model():
    """A model of 265 MB, whose largest weights are of 33 MB."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=16_000,
            hidden_size=512,
            intermediate_size=2048,
            num_hidden_layers=12,
            num_attention_heads=8,
        )
    )


def status(key):
    """Return bytes of this process, by the kernel's name for them."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.partition(f"{key}:")[2].split()[0]) * 1024


def measure(rank, ranks, port, folder, stage):
    """Export to ``folder/model``, and write the bytes that it allocated at most to ``folder/rank``."""
    folder = Path(folder)
    os.environ.update({"CUDA_VISIBLE_DEVICES": ""} | (of_ranks(ranks, port)[rank] if ranks > 1 else {}))
    start_distributed()
    save(BY_NAME["BERT"], folder / f"tokenizer-{rank}")
    tokenizer = AutoTokenizer.from_pretrained(folder / f"tokenizer-{rank}")
    recipe = load_recipe(
        "cantonese-pos", [f"engine.zero_stage={stage}", "engine.precision=fp32", "optimizer.name=sgd"]
    )
    trained = model()
    engine, _ = build_engine(recipe, trained, 1)
    # A small one first, for what the libraries load and keep.
    export(folder / "first", save(BY_NAME["BERT"], folder / f"tokenizer-{rank}"), tokenizer, {}, "")
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM begins anew
    export(folder / "model", trained, tokenizer, {}, "", shard_size=SHARD_SIZE)
    (folder / str(rank)).write_text(json.dumps(status("VmHWM") - before), encoding="ascii")
    engine.destroy()
