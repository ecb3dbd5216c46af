"""How the command line ends where something is wrong."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from fangyan.errors import shorten
from fangyan.terminal import printable


def fail(sentence: str, silent: bool = False, code: int = 2) -> None:
    """End with a sentence on standard error.

    Args:
        sentence: of what is wrong.
        silent: whether another process says it.
        code: of the exit.
    """
    if not silent:
        with suppress(OSError):  # of a terminal that has closed
            print(f"fangyan: {printable(shorten(sentence))}", file=sys.stderr)
    end(code, sentence)


def end(code: int, reason: str = "") -> None:
    """End without waiting for threads and process groups of a run that failed.

    Args:
        code: of the exit.
        reason: that other ranks of the run are told, which may not have met it.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    group = sys.modules.get("fangyan.distributed.process_group")
    if group is not None and reason:
        group.announce_end(reason, code)
    os._exit(code)
