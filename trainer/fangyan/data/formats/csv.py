"""Tables of comma- or tab-separated values with a header (RFC 4180)."""

from __future__ import annotations

import ast
import csv
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import override

from fangyan.data.compression import suffix
from fangyan.data.example import BOM, Example, read_raw_lines
from fangyan.data.formats.records import Name, RecordsConfig
from fangyan.data.json_text import NotJson, parse_json
from fangyan.errors import UserError

# Characters of a cell: what is longer is a quotation mark that never closes.
LARGEST_CELL = 1 << 24
# Characters of a cell up to which it is looked at for a list as Python prints it.
_PARSED = 100_000
_LISTS: tuple[Name, ...] = ("tokens", "tags", "spans", "messages")


class Csv(RecordsConfig):
    """CSV or TSV with a header: tokens and tags in cells of words or JSON lists, or a text."""

    format: Literal["csv"] = "csv"

    separator: Annotated[str, Field(min_length=1, max_length=1)] | None = Field(
        None, description="Between cells; by default a tab in .tsv files, else a comma."
    )
    quoted: bool = Field(
        True, description='Whether "" around a cell is not part of it; false reads every " as it is.'
    )

    @override
    def read(self, path: Path) -> Iterator[Example]:
        """Yield the rows of a file; see :class:`DataConfig`."""
        rows = self._rows(path)
        first = next(rows, None)
        if first is None:
            return
        _, names = first
        names[:1] = [name.removeprefix(BOM) for name in names[:1]]
        self._check_header(names, path)
        for number, cells in rows:
            source = f"{path}:{number}"
            if not cells:
                continue
            if len(cells) != len(names):
                raise UserError(f"{source}: {len(cells)} cells, expected {len(names)} as in the header")
            example = self.example(self._record(dict(zip(names, cells, strict=True)), source), source)
            if example is not None:
                yield example

    def _rows(self, path: Path) -> Iterator[tuple[int, list[str]]]:
        """Yield each row with the number of its first line; a quoted cell may have several."""
        csv.field_size_limit(LARGEST_CELL)
        separator = self.separator or ("\t" if suffix(path) in (".tsv", ".tab") else ",")
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        reader = csv.reader(
            (line for _, line in read_raw_lines(path)), delimiter=separator, quoting=quoting, strict=True
        )
        number = 1
        try:
            for cells in reader:
                yield number, cells
                number = reader.line_num + 1
        except csv.Error as error:
            hint = '; data.quoted: false reads every " as it is' if self.quoted else ""
            raise UserError(f"{path}:{number}: no row of a table: {error}{hint}") from None

    def _check_header(self, names: list[str], path: Path) -> None:
        needed = list(self.columns.values())
        if not needed:
            needed = ["tokens", "tags"] if "tokens" in names or "text" not in names else ["text", "spans"]
        for name in needed:
            if names.count(name) != 1:
                found = "no" if name not in names else "more than one"
                raise UserError(
                    f"{path}:1: {found} column {name!r} in the header {', '.join(names)[:120]}; data.columns "
                    "names others, such as {text: NAME}"
                )

    def _record(self, cells: dict[str, str], source: str) -> dict[str, Any]:
        lists = {self.column(name) for name in _LISTS}
        record = {name: _list(cell, source) if name in lists else cell for name, cell in cells.items()}
        label = self.columns.get("label")
        if label is not None and cells[label].lstrip().startswith("["):  # several
            record[label] = _list(cells[label], source)
        answers = self.columns.get("answers")
        if answers is not None:  # an empty cell is no answer
            record[answers] = parse_json(cells[answers].strip() or "[]", source)
        return record


def _list(cell: str, source: str) -> Any:
    """Return a cell that is a JSON list, or words with spaces between them."""
    if cell.lstrip().startswith("["):
        with suppress(NotJson):  # words, the first of which begins with a bracket
            return parse_json(cell, source)
        # As pandas and NumPy write lists: split at spaces, quotes and commas would become part of the words.
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            # Python's parser takes 100 bytes for each of a cell.
            if len(cell) < _PARSED and isinstance(ast.literal_eval(cell.strip()), list):
                raise UserError(
                    f'{source}: a list as Python prints it, expected one of JSON, such as ["a", "b"] '
                    f"(json.dumps), or words with spaces between them; found {cell[:80]!r}"
                )
    return [word for word in cell.split(" ") if word]
