"""What is written for people to read: characters of data do nothing to their terminal."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

from rich.console import Console
from rich.text import Text
from typing_extensions import override

# All but tab and line feed: ESC begins a terminal's commands, and a carriage return hides what is before it.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


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
    def on_broken_pipe(self) -> None:
        """Write nothing more where whoever read it has gone: a run goes on, and its log has it all."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
