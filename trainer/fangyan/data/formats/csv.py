"""Tables of comma- or tab-separated values with a header (RFC 4180)."""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from fangyan.data.annotated import Annotator, Block, annotate_blocks, examples_of
from fangyan.data.compression import suffix
from fangyan.data.example import BOM, Annotation, Example, read_raw_lines
from fangyan.data.formats.conll import cut_end
from fangyan.data.formats.records import PREDICTED, Name, RecordsConfig
from fangyan.data.json_text import NotJson, parse_json
from fangyan.errors import UserError
from fangyan.suggestions import did_you_mean

# Characters of a cell: what is longer is a quotation mark that never closes.
LARGEST_CELL = 1 << 24
# Characters of a cell up to which it is looked at for a list as Python prints it.
_PARSED = 100_000
_LISTS: tuple[Name, ...] = ("tokens", "tags", "spans", "messages")


class Csv(RecordsConfig):
    """CSV or TSV with a header: tokens and tags in cells of words or JSON lists, or a text."""

    format: Literal["csv"] = "csv"
    has_header: ClassVar[bool] = True

    separator: Annotated[str, Field(min_length=1, max_length=1)] | None = Field(
        None, description="Between cells; by default a tab in .tsv files, else a comma."
    )
    quoted: bool = Field(
        True, description='Whether "" around a cell is not part of it; false reads every " as it is.'
    )

    @override
    def read(self, path: Path) -> Iterator[Example]:
        """Yield the rows of a file; see :class:`DataConfig`."""
        return examples_of(self.blocks(path, True))

    @override
    def blocks(self, path: Path, labelled: bool) -> Iterator[Block]:
        """Yield the header and the rows of a file; see :class:`TaggedDataConfig`."""
        return _Table(self, path, labelled).blocks()

    @override
    def header(self, path: Path) -> str:
        """Return the names of the columns of :meth:`blank`."""
        return self._row(list(self.unlabelled_columns), path)

    @override
    def blank(self, example: Example, path: Path) -> str:
        """Return a row with tokens, or with a text and its pair."""
        return self._row([_cell(value) for value in self.without_labels(example).values()], path)

    def _row(self, cells: Sequence[str], path: Path) -> str:
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        row = StringIO()
        writer = csv.writer(
            row,
            delimiter=self.between(path),
            quoting=quoting,
            quotechar='"' if self.quoted else None,
            lineterminator="\n",
        )
        try:
            writer.writerow(cells)
        except csv.Error:
            raise UserError(
                f"{path}: {str(cells)[:60]} has the separator in it, which can only be written with "
                "data.quoted: true"
            ) from None
        return row.getvalue()

    @override
    def metadata(self, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield the cells of each row by the names of their columns; see :class:`DataConfig`."""
        names: list[str] = []
        for number, _, cells in self.rows(path):
            if names and cells:
                yield f"{path}:{number}", dict(zip(names, cells, strict=False))
            names = names or cells

    @override
    def annotate(self, path: Path, annotations: Annotator) -> Iterator[str]:
        """Yield the rows of a file with what is predicted; see :class:`TaggedDataConfig`.

        What has no column gets one at the end, and so do probabilities, as JSON.
        """
        table = _Table(self, path, False)

        def noted(examples: Iterator[Example]) -> Iterator[Annotation]:
            for annotation in annotations(examples):
                table.note(annotation)
                yield annotation

        rows = annotate_blocks(table.blocks(), noted, table.write)
        yield from (table.widen(number, row) for number, row in enumerate(rows))

    def rows(self, path: Path) -> Iterator[tuple[int, str, list[str]]]:
        """Yield each row with the number of its first line and its text; a quoted cell may have several."""
        csv.field_size_limit(LARGEST_CELL)
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        taken: list[str] = []

        def lines() -> Iterator[str]:
            for number, line in read_raw_lines(path):
                taken.append(line)
                yield line.removeprefix(BOM) if number == 1 else line

        reader = csv.reader(lines(), delimiter=self.between(path), quoting=quoting, strict=True)
        number = 1
        try:
            for cells in reader:
                yield number, "".join(taken), cells
                number = reader.line_num + 1
                taken.clear()
        except csv.Error as error:
            hint = '; data.quoted: false reads every " as it is' if self.quoted else ""
            raise UserError(f"{path}:{number}: no row of a table: {error}{hint}") from None

    def between(self, path: Path) -> str:
        """Return what separates a file's cells."""
        return self.separator or ("\t" if suffix(path) in (".tsv", ".tab") else ",")

    def check_header(self, names: list[str], path: Path, tagged: bool) -> None:
        """Refuse a header without the columns that are read, or with two of one name.

        Args:
            names: of the columns.
            path: of the file.
            tagged: whether tags, labels and answers are read too.
        """
        needed: dict[str, str] = {str(name): key for name, key in self.columns.items()}
        if not needed:
            tokens = "tokens" in names or "text" not in names
            needed = {name: name for name in (("tokens", "tags") if tokens else ("text", "spans"))}
        for own, name in needed.items():
            if not tagged and own in PREDICTED and names.count(name) == 0:
                continue
            if names.count(name) != 1:
                found = "no" if name not in names else "more than one"
                raise UserError(
                    f"{path}:1: {found} column {name!r} in the header {', '.join(names)[:120]}; data.columns "
                    f"names others, such as {{text: NAME}}{did_you_mean(name, names)}"
                )

    def record(self, cells: dict[str, str], source: str, tagged: bool = True) -> dict[str, Any]:
        """Return the values of a row's cells.

        Args:
            cells: by the names of their columns.
            source: ``file:line``.
            tagged: whether tags, labels and answers are read too.
        """
        lists = {self.column(name) for name in _LISTS if tagged or name not in PREDICTED}
        record = {name: _list(cell, source) if name in lists else cell for name, cell in cells.items()}
        if not tagged:
            return record
        label = self.columns.get("label")
        if label is not None and cells[label].lstrip().startswith("["):  # several
            record[label] = _list(cells[label], source)
        answers = self.columns.get("answers")
        if answers is not None:  # an empty cell is no answer
            record[answers] = parse_json(cells[answers].strip() or "[]", source)
        return record


class _Table:
    """The rows of one file.

    Args:
        config: of the format.
        path: of the file.
        tagged: whether tags, labels and answers are read too.
    """

    def __init__(self, config: Csv, path: Path, tagged: bool):
        self._config, self._path, self._tagged = config, path, tagged
        self._between = config.between(path)
        cell = rf"[^{re.escape(self._between)}\r\n]*"
        self._cell = re.compile(rf'"(?:[^"]|"")*"|{cell}' if config.quoted else cell)
        self._names: list[str] = []
        # Names of columns that predictions add.
        self._added: list[str] = []

    def blocks(self) -> Iterator[Block]:
        """Yield the header, and each row."""
        for number, row, cells in self._config.rows(self._path):
            source = f"{self._path}:{number}"
            if not self._names:
                self._config.check_header(cells, self._path, self._tagged)
                self._names = cells
                yield Block([row])
                continue
            example = None
            if cells:
                if len(cells) != len(self._names):
                    expected = f"expected {len(self._names)} as in the header"
                    raise UserError(f"{source}: {len(cells)} cells, {expected}")
                record = self._config.record(dict(zip(self._names, cells, strict=True)), source, self._tagged)
                example = self._config.example(record, source, self._tagged)
            yield Block([row], example)

    def note(self, annotation: Annotation) -> None:
        """Take notice of the columns that an annotation adds."""
        names = list(annotation.values)
        if not names:
            names = ["spans" if self._config.has_spans(dict.fromkeys(self._names)) else "tags"]
            names += ["probabilities"] * (annotation.probabilities is not None)
        columns = (self._config.column(name) for name in names)
        self._added = [name for name in columns if name not in self._names]

    def write(self, block: Block, annotation: Annotation) -> Iterator[str]:
        """Yield a row with what is predicted."""
        (row,) = block.lines
        places = self._places(row)
        cells = [row[start:end] for start, end in places]  # not by name: columns may share one
        values = dict(zip(self._names, map(self._bare, cells), strict=True))
        is_json = values.get(self._config.column("tokens"), "").lstrip().startswith("[")
        record = self._config.record(values, "", False)
        for name, value in self._config.predicted(record, annotation, block.example).items():
            words = name == self._config.column("tags") and not is_json
            cell = self._quote(" ".join(value) if words else _text(value))
            if name in self._names:
                cells[self._names.index(name)] = cell
            else:
                cells.append(cell)
        yield self._between.join(cells) + row[places[-1][1] :]

    def widen(self, number: int, row: str) -> str:
        """Return a row with all columns: the header with their names, one that has no text with empty cells.

        Args:
            number: of the row, counted from 0.
            row: with its line end.
        """
        text, end = cut_end(row)
        if not self._added or not text:
            return row
        if number == 0:
            return self._between.join([text, *(self._quote(name) for name in self._added)]) + end
        missing = len(self._names) + len(self._added) - len(self._places(row))
        return text + self._between * missing + end

    def _places(self, row: str) -> list[tuple[int, int]]:
        """Return where each cell of a row begins and ends, quotation marks included."""
        places: list[tuple[int, int]] = []
        start = 0
        while True:
            found = self._cell.match(row, start)
            assert found is not None
            places.append(found.span())
            if not row.startswith(self._between, found.end()):
                return places
            start = found.end() + len(self._between)

    def _bare(self, cell: str) -> str:
        if self._config.quoted and cell.startswith('"'):
            return cell[1:-1].replace('""', '"')
        return cell

    def _quote(self, text: str) -> str:
        if self._config.quoted and any(mark in text for mark in (self._between, '"', "\r", "\n")):
            return '"' + text.replace('"', '""') + '"'
        if any(mark in text for mark in (self._between, "\r", "\n")):
            raise UserError(
                f"{self._path}: {text[:60]!r} has the separator in it, which can only be written with "
                "data.quoted: true"
            )
        return text


def _text(value: Any) -> str:
    """Return a value as a cell: text and numbers as they are, else JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cell(value: Any) -> str:
    """Return a text as it is; words with spaces between them, or as JSON where they have some."""
    if isinstance(value, str):
        return value
    is_plain = all(" " not in word for word in value) and not value[0].startswith("[")
    return " ".join(value) if is_plain else json.dumps(value, ensure_ascii=False)


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
