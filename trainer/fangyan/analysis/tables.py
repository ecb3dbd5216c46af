"""Files of two columns, as --mapping and --terms take them."""

from __future__ import annotations

from pathlib import Path

from fangyan.data.example import read_lines
from fangyan.errors import UserError


def read_pairs(path: Path) -> list[tuple[int, str, str]]:
    """Return the lines of a file of two columns with a tab between them: number, left, right.

    Blank lines, and those that begin with ``# ``, are none.

    Raises:
        UserError: naming the line that is no pair; or for a file without any.
    """
    found = []
    for number, line in read_lines(path):
        if not line.strip() or line.startswith("# "):
            continue
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) != 2 or not all(cells):
            raise UserError(
                f"{path}:{number}: {len(cells)} columns, expected 2 with a tab between, and none empty; "
                f"found {line[:80]!r}"
            )
        found.append((number, cells[0], cells[1]))
    if not found:
        raise UserError(f"{path}: no pair in it, expected lines of two columns with a tab between")
    return found


def check_once(path: Path, number: int, term: str, lines: dict[str, int]) -> None:
    """Refuse what another line of a file has; remember the line of what is new.

    Args:
        path: of the file.
        number: of the line.
        term: in it.
        lines: of all terms so far.

    Raises:
        UserError: naming both lines.
    """
    if lines.setdefault(term, number) != number:
        raise UserError(f"{path}:{number}: {term!r} is also in line {lines[term]}, expected it once")
