"""CoNLL columns: one token and its tag per line, a blank line between sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple

import pydantic
from pydantic import Field
from typing_extensions import override

from fangyan.data.annotated import Annotator, Block, annotate_blocks, comments, examples_of, likely_tags
from fangyan.data.example import Annotation, Example, bare, read_raw_lines
from fangyan.data.splits import TaggedDataConfig
from fangyan.errors import UserError

# Comments of CoNLL-U, which may have as many words as a token has columns.
_COMMENT = re.compile(r"#\s*(new(doc|par)\b|[\w.\[\]/-]+\s*[=:]\s)")
_DOCUMENT = "-DOCSTART-"


class Line(NamedTuple):
    """A line of a file: its number, as it is, and without its line end."""

    number: int
    raw: str
    text: str


class Conll(TaggedDataConfig):
    """Two columns, or those that are named; comments and ``-DOCSTART-`` lines are skipped."""

    format: Literal["conll"] = "conll"
    line_per_token: ClassVar[bool] = True
    between_examples: ClassVar[str] = "\n"
    has_comments: ClassVar[bool] = True

    columns: dict[Literal["token", "tag"], Annotated[int, Field(ge=1, le=10_000)]] | None = Field(
        None,
        description="Where token and tag are, such as {token: 2, tag: 4}; by default there are two columns.",
    )
    separator: Annotated[str, Field(min_length=1)] = Field(
        "auto",
        description="What is between columns; a space stands for any number of them. auto is a tab if a "
        "sentence has one, else spaces.",
    )
    token_prefix: str = Field(
        "", description="What begins every token in the file without being part of it, such as WikiANN's nl:."
    )

    @pydantic.field_validator("columns")
    @classmethod
    def _both(cls, value: dict[str, int] | None) -> dict[str, int] | None:
        if value is not None and (set(value) != {"token", "tag"} or value["token"] == value["tag"]):
            raise ValueError(f"found {value}, expected two columns, such as {{token: 1, tag: 3}}")
        return value

    @override
    def read(self, path: Path) -> Iterator[Example]:
        """Yield the sentences of a file; see :class:`DataConfig`."""
        return examples_of(self.blocks(path, True))

    @override
    def blocks(self, path: Path, labelled: bool) -> Iterator[Block]:
        """Yield the sentences of a file, and the lines between them; see :class:`TaggedDataConfig`."""
        return _Reader(self, path, labelled).blocks()

    @override
    def blank(self, example: Example, path: Path) -> str:
        """Return a line for each token, without its tag; columns before the tag's are ``_``."""
        columns = self.columns or {"token": 1, "tag": 2}
        between = "\t" if self.separator == "auto" else self.separator
        cells = ["_"] * max(columns.values())
        if columns["tag"] == len(cells):  # spaces do not stand for an empty column
            cells[-1:] = [] if between == " " else [""]
        lines = []
        for token in example.fields["tokens"]:
            cells[columns["token"] - 1] = self.token_prefix + token
            lines.append(between.join(cells) + "\n")
        return "".join(lines)

    @override
    def metadata(self, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield the comments ``# key = value`` of each sentence; see :class:`DataConfig`."""
        return comments(_Reader(self, path, False).blocks())

    @override
    def annotate(self, path: Path, annotations: Annotator) -> Iterator[str]:
        """Yield the lines of a file with predicted tags; see :class:`TaggedDataConfig`.

        Where lines end before the tag's column, it is added. Probabilities are columns at the end.
        """
        reader = _Reader(self, path, False)
        return annotate_blocks(reader.blocks(), annotations, reader.write)


class _Reader:
    """The sentences of one file.

    Args:
        config: of the format.
        path: of the file.
        tagged: whether every token needs its tag.
    """

    def __init__(self, config: Conll, path: Path, tagged: bool):
        columns = config.columns or {"token": 1, "tag": 2}
        self._token, self._tag = columns["token"] - 1, columns["tag"] - 1
        self._only_two = config.columns is None
        self._separator = config.separator
        self._prefix = config.token_prefix
        self._path, self._tagged = path, tagged
        # Where tags need not be there, every column before theirs has to: none is made up to reach it.
        self._needed = max(self._token + 1, self._tag + tagged)
        # Of the sentence at hand, and of the file: its columns where spaces separate them.
        self._between: str | None = None
        self._width: int | None = None

    def blocks(self) -> Iterator[Block]:
        """Yield the sentences, and the lines between them."""
        sentence: list[Line] = []
        for number, raw in read_raw_lines(self._path):
            text = bare(raw, str(self._path), number)
            if not is_blank(text) and not text.startswith(_DOCUMENT):
                sentence.append(Line(number, raw, text))
                continue
            if sentence:
                yield self._block(sentence)
                sentence = []
            yield Block([raw])
        if sentence:
            yield self._block(sentence)

    def _block(self, sentence: list[Line]) -> Block:
        head = list(takewhile(lambda line: line.text.startswith("#"), sentence))
        first = sentence[len(head)].text if len(head) < len(sentence) else None
        if self._separator != "auto":
            self._between = self._separator
        elif first is not None:
            self._between = "\t" if "\t" in first else " "
        rows = [
            i for i, line in enumerate(sentence) if i >= len(head) or not self._is_comment(line.text, first)
        ]
        if not rows:
            return Block([line.raw for line in sentence])
        cells = [self._cells(sentence[i]) for i in rows]
        tokens = tuple(self._token_of(row, sentence[i]) for row, i in zip(cells, rows, strict=True))
        fields = {"tokens": tokens}
        if self._tagged:
            fields["tags"] = tuple(row[self._tag].strip(" ") for row in cells)
        source = f"{self._path}:{sentence[rows[0]].number}"
        return Block([line.raw for line in sentence], Example(fields, source, " ".join(tokens)), tuple(rows))

    def _is_comment(self, text: str, first: str | None) -> bool:
        """Return whether a line that begins with # before any other of its sentence is no token.

        Args:
            text: of the line.
            first: the sentence's first other line, which shows its columns; None where there is none.
        """
        if "\t" not in text and _COMMENT.match(text + " "):
            return True
        between = self._between or ("\t" if "\t" in text else " ")
        if first is not None:
            is_token = len(split(text, between)) == len(split(first, between))
        else:  # `# Licence` at the top of a file is no token, while # TAB O is
            is_token = len(split(text, between)) > max(self._token, self._tag) and (
                between != " " or self._between is not None
            )
        return not is_token and text.startswith(("# ", "#\t", "##"))

    def _cells(self, line: Line) -> list[str]:
        between = self._between or ("\t" if "\t" in line.text else " ")
        if between == " " and "\t" in line.text and self._separator == "auto":
            raise UserError(
                f"{self._path}:{line.number}: a tab, but the sentence begins with spaces between columns; "
                f"expected the same, found {line.text[:80]!r}"
            )
        cells = split(line.text, between)
        count = len(cells) if self._tagged or between == " " else line.text.count(between) + 1
        fits = count >= self._needed
        if self._only_two:
            fits &= len(cells) <= 2
        elif between == " ":  # a token with a space in it would move the others
            self._width = self._width or len(cells)
            fits &= len(cells) == self._width
        token, tag = (cells[i] if i < len(cells) else "" for i in (self._token, self._tag))
        if fits and token and (not self._tagged or tag.strip(" ")):
            return cells
        raise UserError(f"{self._path}:{line.number}: {self._expected(len(cells))}, found {line.text[:80]!r}")

    def _expected(self, count: int) -> str:
        if self._only_two:
            hint = f"; name them in data.columns, such as {{token: 1, tag: {count}}}" if count > 2 else ""
            return f"{count} columns, expected 2 (token, tag){hint}"
        exact = f"{self._width} as before" if self._width else f"{self._needed} or more"
        return f"{count} columns, expected {exact}: token in {self._token + 1}, tag in {self._tag + 1}"

    def _token_of(self, cells: Sequence[str], line: Line) -> str:
        token = cells[self._token]
        if not token.startswith(self._prefix) or token == self._prefix:
            raise UserError(
                f"{self._path}:{line.number}: token {token!r}, expected it to begin with {self._prefix!r} "
                "(data.token_prefix)"
            )
        return token.removeprefix(self._prefix)

    def write(self, block: Block, annotation: Annotation) -> list[str]:
        """Return a sentence's lines with predicted tags."""
        lines = list(block.lines)
        between = self._separator
        if between == "auto":  # of the sentence: a line of a tab-separated one may have spaces alone
            between = "\t" if any("\t" in lines[row] for row in block.rows) else " "
        for token, row in enumerate(block.rows):
            text, end = cut_end(lines[row])
            new = put(text, between, self._tag, annotation.tags[token])
            lines[row] = between.join([new, *likely_tags(annotation, token)]) + end
        return lines


def cut_end(raw: str) -> tuple[str, str]:
    """Return a raw line and its line end apart."""
    text = raw.rstrip("\r\n")
    return text, raw[len(text) :]


def is_blank(text: str) -> bool:
    """Return whether a line separates sentences: it is empty, of spaces or of tabs."""
    return not text.strip(" ") or not text.strip("\t")


def split(text: str, separator: str) -> list[str]:
    """Return the columns of a line without empty ones at its end; a space is any number of spaces."""
    if separator == " ":  # other white space, such as U+00A0, belongs to tokens
        return re.findall(r"[^ ]+", text)
    cells = text.split(separator)
    while len(cells) > 1 and not cells[-1].strip(" "):
        cells.pop()
    return cells


def put(text: str, separator: str, column: int, value: str) -> str:
    """Return a line with another value in a column, which is added where the line ends before it."""
    if separator == " ":
        spans = [match.span() for match in re.finditer(r"[^ ]+", text)]
        if column < len(spans):
            start, end = spans[column]
            return text[:start] + value + text[end:]
        return f"{text.rstrip(' ')} {value}"
    cells = text.split(separator)
    cells += [""] * (column + 1 - len(cells))
    cells[column] = value
    return separator.join(cells)
