"""Bars of what takes long: on a terminal, in a notebook, and a line now and then in a log file.

A bar appears after a second, on standard error, and is gone when its work is done. Only the innermost of
several is shown. Nothing is shown with ``--quiet``, by other ranks than the first, and by other threads than
the main one, such as a service's. A bar is drawn where it advances, ten times per second at most.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from html import escape
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from typing_extensions import override

from fangyan.terminal import OUTPUT, Terminal, clear_bar, duration, is_first_rank, printable, say_line

T = TypeVar("T")

# Seconds before a bar is shown.
_PATIENCE = 1.0
# Seconds, and the share of the work, between two lines of a log file.
_LINE_SECONDS, _LINE_SHARE = 30.0, 0.1


class Bar:
    """How far some work is.

    Args:
        what: is done, such as ``tokenizing``.
        total: of its pieces, or None where nobody knows.
        done: of them, before.

    Attributes:
        status: what else there is to say, such as a loss.
    """

    def __init__(self, what: str, total: int | None = None, done: int = 0):
        self.what, self.total, self.done, self.status = what, total, done, ""
        self.began = time.monotonic()
        self._first = done
        self._next = self.began + _PATIENCE
        self._screen = _screen()

    def advance(self, count: int = 1) -> None:
        """Count pieces that are done."""
        self.done += count
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._screen.interval
            self._screen.show(self)

    def show(self) -> None:
        """Show it now."""
        self._screen.show(self)

    def close(self) -> None:
        """Take it away."""
        self._screen.hide()

    @property
    def seconds_left(self) -> float | None:
        """Return how long the rest takes if it goes on as before; None where that is not known."""
        counted = self.done - self._first
        if self.total is None or not counted > 0 or self.done >= self.total:
            return None
        return (time.monotonic() - self.began) / counted * (self.total - self.done)

    def __str__(self) -> str:
        """Return how far it is, in words."""
        parts = []
        if self.total is not None:
            parts.append(f"{self.done:,} of {self.total:,}")
        elif self.done:
            parts.append(f"{self.done:,}")
        if self.status:
            parts.append(self.status)
        if (left := self.seconds_left) is not None:
            parts.append(f"{duration(left)} left")
        return ", ".join(parts)


class _Screen(Protocol):
    """Where bars are shown.

    Attributes:
        interval: seconds between two looks at a bar.
    """

    interval: float

    def show(self, bar: Bar) -> None:
        """Show how far it is."""

    def hide(self) -> None:
        """Take it away."""


class _Nowhere:
    """Shows nothing."""

    interval = 3600.0

    def show(self, bar: Bar) -> None:
        pass

    def hide(self) -> None:
        pass


class _LineOfBars(Terminal):
    """A console that bars themselves are drawn on, and that does not ask them to give way."""

    @override
    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does."""
        Console.print(self, *objects, **options)


class _TerminalScreen:
    """A line that gives way to whatever else is printed, and comes again."""

    interval = 0.1

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a timer shows a bar whose work never advances
        self._progress: Progress | None = None
        self._line = TaskID(0)
        self._is_shown = False

    def show(self, bar: Bar) -> None:
        with self._lock:
            if not self._is_shown:
                clear_bar()  # of another
            progress = self._progress = self._progress or self._new()
            what, status = printable(bar.what), printable(str(bar))
            progress.update(self._line, total=bar.total, completed=bar.done, description=what, status=status)
            self._is_shown, OUTPUT.clear = True, self.hide  # before a signal's handler may have to know
            progress.start()
            progress.refresh()

    def _new(self) -> Progress:
        progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[status]}", markup=False),
            console=_LineOfBars(stderr=True, highlight=False),
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._line = progress.add_task("", total=None, status="")
        return progress

    def hide(self) -> None:
        with self._lock:
            if self._is_shown and self._progress is not None:
                self._is_shown = False
                OUTPUT.clear = None
                self._progress.stop()


class _Notebook:
    """One output of a notebook's cell, which is replaced; rich would need ipywidgets for it."""

    interval = 0.5

    def __init__(self) -> None:
        self._output: Any = None

    def show(self, bar: Bar) -> None:
        from IPython.display import display

        line = f"{bar.what}: {bar}"
        known = "" if bar.total is None else f' max="{max(bar.total, 1)}" value="{bar.done}"'
        content = {"text/plain": line, "text/html": f"<progress{known}></progress> {escape(line)}"}
        if self._output is None:
            self._output = display(content, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._output.update(content, raw=True)

    def hide(self) -> None:
        if self._output is not None:
            self._output.update({"text/plain": "", "text/html": ""}, raw=True)
            self._output = None


class _LogFile:
    """Lines of long work: one for each tenth of it, but no more than two in a minute."""

    interval = 1.0

    def __init__(self) -> None:
        self._after = self._share = 0.0

    def show(self, bar: Bar) -> None:
        after = time.monotonic() - bar.began
        if bar.total:
            share = bar.done / bar.total
            is_due, percent = share - self._share >= _LINE_SHARE, f" ({share:.0%})"
        else:  # lines become rare as time goes by
            share, is_due, percent = 0.0, after >= 2 * self._after, ""
        if is_due and after - self._after >= _LINE_SECONDS:
            self._after, self._share = after, share
            say_line(f"{bar.what}: {bar}{percent}")

    def hide(self) -> None:
        pass


def _screen() -> _Screen:
    """Return where this process shows bars now."""
    if OUTPUT.quiet or not is_first_rank() or threading.current_thread() is not threading.main_thread():
        return _Nowhere()
    console = Terminal(stderr=True)
    if console.is_jupyter:
        return _Notebook()
    if sys.stderr.isatty() and console.is_interactive:
        return _TerminalScreen()
    return _LogFile()


@contextmanager
def progress(what: str, total: int | None = None, done: int = 0) -> Iterator[Bar]:
    """Show how far the work of a block is, where it takes longer than a second.

    Args:
        what: is done, such as ``tokenizing``.
        total: of pieces, of which :meth:`Bar.advance` counts those that are done; by default nobody knows.
        done: of them, before.
    """
    bar = Bar(what, total, done)
    timer = threading.Timer(_PATIENCE, bar.show)
    timer.daemon = True
    if total is None:
        timer.start()
    try:
        yield bar
    finally:
        if total is None:
            timer.cancel()
            timer.join()  # or it might show the bar after its end
        bar.close()


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield items, and show how many of them have been worked on; see :func:`progress`."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(what, total) as bar:
        for item in items:
            yield item
            bar.advance()
