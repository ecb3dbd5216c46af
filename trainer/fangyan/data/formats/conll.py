"""CoNLL columns: one token and its tag per line, a blank line between sentences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from typing_extensions import override

from fangyan.data.example import Example, read_lines
from fangyan.data.splits import TaggedDataConfig
from fangyan.errors import UserError


class Conll(TaggedDataConfig):
    """Two columns, separated by a tab or spaces; ``-DOCSTART-`` lines are skipped."""

    format: Literal["conll"] = "conll"
    line_per_token: ClassVar[bool] = True

    @override
    def read(self, path: Path) -> Iterator[Example]:
        """Yield the sentences of a file; see :class:`DataConfig`."""
        sentence: list[tuple[str, str]] = []
        start = 1
        for number, line in read_lines(path):
            if line.strip() and not line.startswith("-DOCSTART-"):
                if not sentence:
                    start = number
                sentence.append(_columns(line, f"{path}:{number}"))
            elif sentence:
                yield _example(sentence, f"{path}:{start}")
                sentence = []
        if sentence:
            yield _example(sentence, f"{path}:{start}")


def _columns(line: str, source: str) -> tuple[str, str]:
    columns = line.split("\t") if "\t" in line else line.split()
    if len(columns) != 2 or not all(columns):
        raise UserError(f"{source}: {len(columns)} columns, expected 2 (token, tag)")
    return columns[0], columns[1].strip()


def _example(sentence: list[tuple[str, str]], source: str) -> Example:
    tokens, tags = zip(*sentence, strict=True)
    return Example({"tokens": tokens, "tags": tags}, source, " ".join(tokens))
