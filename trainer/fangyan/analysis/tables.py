"""Files of two columns, as --mapping and --terms take them."""

from __future__ import annotations

from pathlib import Path

from fangyan.data.example import read_lines
from fangyan.errors import UserError


def read_pairs(path: Path) -> list[tuple[int, str, str]]:
    """Return the lines of a file of two columns with a tab between them: number, left, right.

    Blank lines, and those that begin with ``# ``, are none.

    Raises:
        UserError: naming the line that is no pair, or whose left side was there before; or an empty file.
    """
    found: list[tuple[int, str, str]] = []
    lines: dict[str, int] = {}
    for number, line in read_lines(path):
        if not line.strip() or line.startswith("# "):
            continue
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) != 2 or not all(cells):
            raise UserError(
                f"{path}:{number}: {len(cells)} columns, expected 2 with a tab between, and none empty; "
                f"found {line[:80]!r}"
            )
        left, right = cells
        if left in lines:
            raise UserError(
                f"{path}:{number}: {left!r} is also in line {lines[left]}, expected every one once"
            )
        lines[left] = number
        found.append((number, left, right))
    if not found:
        raise UserError(f"{path}: no pair in it, expected lines of two columns with a tab between")
    return found
