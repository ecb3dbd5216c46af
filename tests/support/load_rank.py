"""A rank that shards a model from its file, and measures what that takes of memory."""

import ctypes
import os
import threading
import time
from pathlib import Path

from export_rank import status
from fangyan.distributed.process_group import start_distributed
from fangyan.models.loading import load_as_stored
from fangyan.recipe import load_recipe
from fangyan.training.engine import build_engine
from forked_command import of_ranks
from transformers import AutoConfig, AutoModelForCausalLM

_M_MMAP_THRESHOLD = -3  # malloc.h


def measure(rank, ranks, port, folder):
    """Load ``folder/model``, of which one norm is trained; write the bytes allocated to ``folder/rank``."""
    folder = Path(folder)
    os.environ.update({"CUDA_VISIBLE_DEVICES": ""} | of_ranks(ranks, port)[rank])
    start_distributed()
    recipe = load_recipe(
        "cantonese-pos", ["engine.zero_stage=3", "engine.precision=bf16", "optimizer.name=sgd"]
    )
    model = load_as_stored(
        AutoModelForCausalLM, folder / "model", AutoConfig.from_pretrained(folder / "model")
    )
    model.requires_grad_(False)
    model.model.norm.requires_grad_(True)
    # Or the C library would learn from blocks that are freed to keep larger ones: up to 32 MB, by chance.
    assert ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 16)
    before = peak = status("RssAnon")
    done = threading.Event()

    def watch():
        nonlocal peak
        while not done.is_set():
            peak = max(peak, status("RssAnon"))
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    engine, _ = build_engine(recipe, model, 1)
    done.set()
    watcher.join()
    (folder / str(rank)).write_text(str(peak - before), encoding="ascii")
    engine.destroy()
