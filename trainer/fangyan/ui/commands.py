"""The commands that the page runs: the same as a terminal's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

_SAYS = "fangyan: "
# Colours, and what else a terminal is told.
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def start(
    arguments: list[str], output: IO[Any], errors: IO[Any] | int = subprocess.STDOUT
) -> subprocess.Popen[bytes]:
    """Start a ``fangyan`` command in a session of its own, which outlives the page and its terminal.

    Args:
        arguments: behind ``fangyan``.
        output: where its standard output goes.
        errors: where its standard error goes.
    """
    # The folder is the user's: a file in it named like a module is none of ours (Python 3.11 and later).
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "fangyan", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        env=environment,
        start_new_session=True,
    )


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last lines of a log, as a terminal would show them; nothing where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 500 * count))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    # Of a progress bar, what was written last.
    lines = [_ESCAPES.sub("", line.rstrip().rpartition("\r")[2]) for line in text.split("\n")]
    return [line for line in lines if line.strip()][-count:]


def sentence(lines: list[str]) -> str | None:
    """Return what a command has said last: its mistake in one sentence, or how an exception ends."""
    said = [line for line in lines if line.startswith(_SAYS)]
    if said:
        return said[-1].removeprefix(_SAYS)
    if any(line.startswith("Traceback ") for line in lines):
        return lines[-1]
    return None
