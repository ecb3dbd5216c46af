"""What a node says of itself before a run is started on it: ``python -m fangyan.distributed.node_report``."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

import psutil

# The variable by which processes of a job are known.
JOB = "FANGYAN_JOB"


class NodeReport(TypedDict):
    """A node's answer.

    Attributes:
        addresses: by which it knows each of the nodes, or "", by name.
        reached: its own address that ssh came to, or "".
        port: one that is free.
        run: identifies the run folder, or 0 where it is not there.
        checkpoint: identifies its newest checkpoint, or "".
    """

    addresses: dict[str, str]
    reached: str
    port: int
    run: int
    checkpoint: str


def report(run: Path, names: Sequence[str]) -> NodeReport:
    """Return what this node has to say.

    Args:
        run: the run folder, which need not be there.
        names: of all nodes.
    """
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    return {
        "addresses": {name: _address(name) for name in names},
        "reached": [*os.environ.get("SSH_CONNECTION", "").split(), "", "", ""][2],
        "port": port,
        "run": run.stat().st_ino if run.is_dir() else 0,
        "checkpoint": _newest(run / "checkpoints"),
    }


def end_job(job: str) -> None:
    """Kill what is left of a job on this node: a process that is stopped hears no other signal."""
    left = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # someone else's, or one that has ended
            if process.environ().get(JOB) == job:
                process.kill()
                left.append(process)
    psutil.wait_procs(left, timeout=10)


def _address(name: str) -> str:
    try:
        return socket.gethostbyname(name.rpartition("@")[2])
    except OSError:  # known to ssh alone
        return ""


def _newest(folder: Path) -> str:
    if not folder.is_dir():
        return ""
    found = [path for path in folder.iterdir() if re.fullmatch(r"step-\d+", path.name)]
    newest = max(found, key=lambda path: int(path.name[5:]), default=None)
    return "" if newest is None else f"{newest.name} {newest.stat().st_ino}"


if __name__ == "__main__":
    end_job(sys.argv[1])
    print(json.dumps(report(Path(sys.argv[2]), sys.argv[3:])))
