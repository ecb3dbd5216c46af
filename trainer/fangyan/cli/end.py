"""How the command line ends, well or where something is wrong."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from contextlib import suppress

from fangyan.errors import shorten
from fangyan.terminal import clear_bar, printable


def leave(code: int) -> None:
    """End as Python does, but without taking apart the modules that were imported.

    That took 0.6 of the 3.5 seconds of ``fangyan predict RUN TEXT``, for nothing; mypy leaves it out, too.
    What is then left are leaks to nanobind, which binds newer releases of Triton, and which says so.

    Args:
        code: of the exit.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has gone
        pass
    except OSError as error:
        fail(f"the output cannot be written ({error.strerror})")
    end(code)


def fail(sentence: str, silent: bool = False, code: int = 2) -> None:
    """End with a sentence on standard error.

    Args:
        sentence: of what is wrong.
        silent: whether another process says it.
        code: of the exit.
    """
    if not silent:
        with suppress(OSError):  # of a terminal that has closed
            clear_bar()
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
