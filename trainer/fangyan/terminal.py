"""What a terminal gives and shows: text in UTF-8, whose control characters do nothing to it."""

from __future__ import annotations

import errno
import os
import re
import select
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any

from rich.console import Console
from rich.text import Text
from typing_extensions import override

# All but tab and line feed: ESC begins a terminal's commands, and a carriage return hides what is before it.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

# Seconds that pass without a word.
_PATIENCE = 15


def printable(text: str) -> str:
    """Return a text with control characters written as ``\\x1b``."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


class Terminal(Console):
    """Rich's console, whose strings may come from data."""

    @override
    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as rich's text."""
        return super().render_str(printable(text), **options)

    @override
    def _check_buffer(self) -> None:
        """Take a terminal that has closed (EIO) for a pipe that has: rich knows only the latter."""
        try:
            super()._check_buffer()
        except OSError as error:
            if error.errno != errno.EIO or self.file.fileno() not in (1, 2):
                raise
            self.on_broken_pipe()

    @override
    def on_broken_pipe(self) -> None:
        """Write nothing more where whoever read it has gone: a run goes on, and its log has it all."""
        self.quiet = True
        let_go_of_lost_output()


def let_go_of_lost_output() -> None:
    """Write to nowhere from here on where a terminal has closed, or whoever read the output has ended."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    for descriptor, event in poll.poll(0):
        if event & (select.POLLERR | select.POLLHUP):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


def say_now(sentence: str) -> None:
    """Say something in a signal's handler: maybe within a print, maybe to a terminal that has closed."""
    let_go_of_lost_output()
    if os.environ.get("LOCAL_RANK", "0") == "0":
        with suppress(OSError):
            os.write(2, f"fangyan: {sentence}\n".encode())


@contextmanager
def say_later(sentence: str) -> Iterator[None]:
    """Say what is waited for if the block takes long. Of the ranks of a node, one does."""
    timer = threading.Timer(_PATIENCE, print, [f"fangyan: {sentence}"], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    if os.environ.get("LOCAL_RANK", "0") == "0":
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def use_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale is another: C, or zh_CN.GBK.

    Names of runs are names of files, which the locale could not encode. Python 3.15 is always in this mode.
    """
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def arguments_error() -> str | None:
    """Return what is wrong with bytes on the command line that are no text: no recipe could hold them."""
    for argument in sys.argv[1:]:
        try:
            argument.encode()
        except UnicodeEncodeError:
            return f"argument {ascii(argument)[:80]}: not UTF-8, expected text"
    return None
