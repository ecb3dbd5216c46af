"""What a terminal gives and shows: text in UTF-8, whose control characters do nothing to it.

Results go to standard output. What is said on the way goes to standard error, and with ``--quiet`` nowhere,
but for warnings. Bars of progress are in :mod:`fangyan.progress`.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import select
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import IO, Any

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text
from typing_extensions import override

# All but tab and line feed: ESC begins a terminal's commands, and a carriage return hides what is before it.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

# Seconds that pass without a word.
_PATIENCE = 15


def printable(text: str) -> str:
    """Return a text with control characters written as ``\\x1b``."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


class _Output:
    """Where this process writes.

    Attributes:
        quiet: whether results, warnings and errors are all that is shown.
        document: a descriptor of standard output, which is kept for the one document of ``--json``.
        clear: takes a bar of progress away, which is on the screen; None where there is none.
        is_part: whether what is done is a part of a whole, whose results are the command's.
        warned: what parts were warned of: several runs of one command have the same data.
    """

    quiet = False
    document: int | None = None
    clear: Callable[[], None] | None = None
    is_part = False

    def __init__(self) -> None:
        self.warned: set[str] = set()


OUTPUT = _Output()


def make_quiet() -> None:
    """Show results, warnings and errors alone from here on."""
    OUTPUT.quiet = True
    if OUTPUT.document is not None:
        _turn_away_stdout()


def keep_stdout_for_json() -> None:
    """Keep standard output for the document of :func:`print_json`.

    What else is written there goes to standard error from here on, that of C libraries and child processes
    included.
    """
    if OUTPUT.document is None:
        sys.stdout.flush()
        OUTPUT.document = os.dup(1)
        _turn_away_stdout()


def _turn_away_stdout() -> None:
    if OUTPUT.quiet:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
    else:
        os.dup2(2, 1)


def give_stdout_back() -> None:
    """Let a child process write the document of ``--json``."""
    if OUTPUT.document is not None:
        sys.stdout.flush()
        os.dup2(OUTPUT.document, 1)
        os.close(OUTPUT.document)
        OUTPUT.document = None


def is_first_rank() -> bool:
    """Return whether this process is the only rank, or the first of a run."""
    return os.environ.get("RANK", "0") == "0"


def print_json(content: Any) -> None:
    """Write a result to standard output as one JSON document. Of several ranks, the first does.

    Numbers that are not finite, which JSON has not, become null.
    """
    give_stdout_back()
    if is_first_rank():
        text = json.dumps(_finite(content), ensure_ascii=False, indent=2)
        print(text, flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    is_none = isinstance(value, float) and not math.isfinite(value)
    return None if is_none else value


def clear_bar() -> None:
    """Take a bar of progress away before something is printed; it comes again with its next advance."""
    if OUTPUT.clear is not None:
        OUTPUT.clear()


class Terminal(Console):
    """Rich's console, whose strings may come from data."""

    def __init__(self, *, file: IO[str] | None = None, **options: Any) -> None:
        if file is not None:
            options["force_jupyter"] = False  # a notebook would show what is meant for the file
        super().__init__(file=file, **options)

    @override
    def print(self, *objects: Any, **options: Any) -> None:
        """Print, where a bar of progress gives way."""
        clear_bar()
        for table in objects:
            if isinstance(table, Table) and isinstance(table.title, str):
                # A title that is longer than its table would be broken into lines of the table's width.
                table.min_width = max(table.min_width or 0, cell_len(table.title))
        super().print(*objects, **options)

    @override
    def show_cursor(self, show: bool = True) -> bool:
        """Leave the cursor as it is: a process that is killed under a bar could not show it again."""
        return False

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


def say_line(text: str) -> None:
    """Say on standard error what a command does, unless it is quiet."""
    if not OUTPUT.quiet:
        _print_line(text)


def warn_line(text: str) -> None:
    """Write a line to standard error, also where a command is quiet; of several parts, once."""
    if not OUTPUT.is_part:
        _print_line(text)
    elif text not in OUTPUT.warned:
        OUTPUT.warned.add(text)
        _print_line(text)


def _print_line(text: str) -> None:
    Terminal(stderr=True, highlight=False).print(text, markup=False, soft_wrap=True)


def say(sentence: str) -> None:
    """Say what a command does, under its name."""
    say_line(f"fangyan: {sentence}")


def warn(sentence: str) -> None:
    """Say something of which a user should know, on standard error also where a command is quiet."""
    warn_line(f"fangyan: {sentence}")


def print_results(*results: RenderableType) -> None:
    """Write results to standard output: tables, and lines as they are.

    Those of :func:`parts` are said on the way.
    """
    if OUTPUT.is_part and OUTPUT.quiet:
        return
    terminal = Terminal(stderr=OUTPUT.is_part, highlight=False)
    for result in results:
        if isinstance(result, str):
            terminal.print(result, markup=False, soft_wrap=True)
        else:
            terminal.print(result)


@contextmanager
def parts() -> Iterator[None]:
    """Take the results of a block for those of a part, such as one of several runs: the command's follow."""
    before, OUTPUT.is_part = OUTPUT.is_part, True
    try:
        yield
    finally:
        OUTPUT.is_part = before


def say_now(sentence: str) -> None:
    """Say something in a signal's handler: maybe within a print, maybe to a terminal that has closed."""
    let_go_of_lost_output()
    if os.environ.get("LOCAL_RANK", "0") == "0":
        # A bar of progress gives way to it.
        erase = "" if OUTPUT.clear is None else "\r\x1b[2K"
        with suppress(OSError):
            os.write(2, f"{erase}fangyan: {sentence}\n".encode())


@contextmanager
def say_later(sentence: str) -> Iterator[None]:
    """Say what is waited for if the block takes long. Of the ranks of a node, one does."""
    timer = threading.Timer(_PATIENCE, say, [sentence])
    timer.daemon = True
    if os.environ.get("LOCAL_RANK", "0") == "0":
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def duration(seconds: float) -> str:
    """Return a time as people say it: ``3 min 20 s``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60} min"


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
