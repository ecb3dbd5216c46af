"""A rank that does nothing but watch the others, for tests in processes of their own."""

import os
import time
from pathlib import Path

import torch.distributed as dist
from fangyan.distributed.heartbeat import Heartbeat

RANKS = 3
# Seconds that pass for silence here.
SILENT = 2.0


def watch(rank, port, error_file, sentence=None, lets_live=False):
    """Watch until another rank is lost; with a sentence, end with it after a moment."""
    os.environ["LOCAL_RANK"] = "0"  # on nodes of their own, so that each says what it found
    os.dup2(os.open(error_file, os.O_WRONLY | os.O_CREAT, 0o600), 2)
    store = dist.TCPStore("127.0.0.1", port, RANKS, rank == 0)
    heartbeat = Heartbeat(rank, RANKS, SILENT)
    heartbeat.start(store, "127.0.0.1")
    heartbeat.step = 7
    time.sleep(1.2)
    store.set(f"ready {rank}", "yes")
    store.wait([f"ready {other}" for other in range(RANKS)])
    Path(f"{error_file}.ready").touch()
    if lets_live:
        heartbeat.let_live()
    if sentence is not None:
        heartbeat.announce(sentence, 2)
        os._exit(2)
    time.sleep(60)
