"""Raw text: one document per line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from typing_extensions import override

from fangyan.data.example import Example, read_lines
from fangyan.data.splits import TextDataConfig


class TextLines(TextDataConfig):
    """Formats whose files hold one document per line; empty lines are skipped."""

    @override
    def read(self, path: Path) -> Iterator[Example]:
        """Yield the lines of a file; see :class:`DataConfig`."""
        for number, line in read_lines(path):
            if text := line.strip():
                yield Example({"text": text}, f"{path}:{number}", text)


class Text(TextLines):
    """One document per line; empty lines are skipped."""

    format: Literal["text"] = "text"
