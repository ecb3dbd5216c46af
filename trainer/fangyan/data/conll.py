"""CoNLL columns: a token and its tag a line, a blank line between sentences."""

from __future__ import annotations

from pathlib import Path

from fangyan.data.examples import Example, read_lines
from fangyan.errors import UserError


def read_conll(path: Path) -> list[Example]:
    """Two columns, tab- or space-separated; ``-DOCSTART-`` lines are passed over.

    Raises:
        UserError: naming file and line, for a line that has not two columns.
    """
    examples: list[Example] = []
    tokens: list[str] = []
    tags: list[str] = []
    start = 1

    def close() -> None:
        if tokens:
            examples.append(Example(tuple(tokens), tuple(tags), f"{path}:{start}", " ".join(tokens)))
            tokens.clear()
            tags.clear()

    for number, line in read_lines(path):
        if not line.strip() or line.startswith("-DOCSTART-"):
            close()
            continue
        columns = line.split("\t") if "\t" in line else line.split()
        if len(columns) != 2 or not all(columns):
            raise UserError(f"{path}:{number}: {len(columns)} columns, expected 2 (token, tag)")
        if not tokens:
            start = number
        tokens.append(columns[0])
        tags.append(columns[1].strip())
    close()
    return examples
