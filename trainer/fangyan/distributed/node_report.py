"""What a node says of itself before a run is started on it: ``python -m fangyan.distributed.node_report``."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from pathlib import Path
from typing import TypedDict


class NodeReport(TypedDict):
    """A node's answer.

    Attributes:
        first: the address that it knows the first node by, or "".
        reached: its own address that ssh came to, or "".
        port: one that is free.
        run: identifies the run folder, or 0 where it is not there.
        checkpoint: identifies its newest checkpoint, or "".
    """

    first: str
    reached: str
    port: int
    run: int
    checkpoint: str


def report(first: str, run: Path) -> NodeReport:
    """Return what this node has to say.

    Args:
        first: name of the node of rank 0.
        run: the run folder, which need not be there.
    """
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    return {
        "first": _address(first),
        "reached": [*os.environ.get("SSH_CONNECTION", "").split(), "", "", ""][2],
        "port": port,
        "run": run.stat().st_ino if run.is_dir() else 0,
        "checkpoint": _newest(run / "checkpoints"),
    }


def _address(name: str) -> str:
    try:
        return socket.gethostbyname(name)
    except OSError:  # known to ssh alone
        return ""


def _newest(folder: Path) -> str:
    if not folder.is_dir():
        return ""
    found = [path for path in folder.iterdir() if re.fullmatch(r"step-\d+", path.name)]
    newest = max(found, key=lambda path: int(path.name[5:]), default=None)
    return "" if newest is None else f"{newest.name} {newest.stat().st_ino}"


if __name__ == "__main__":
    print(json.dumps(report(sys.argv[1], Path(sys.argv[2]))))
