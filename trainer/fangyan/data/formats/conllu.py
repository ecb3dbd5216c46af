"""CoNLL-U, the format of Universal Dependencies (https://universaldependencies.org/format.html).

Read line by line: the package ``conllu`` drops line ends, repeated blank lines and the spelling of comments,
and its errors name no line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from fangyan.data.annotated import Annotator, Block, annotate_blocks, comments, examples_of, likely_tags
from fangyan.data.example import Annotation, Example, bare, read_raw_lines
from fangyan.data.formats.conll import cut_end, is_blank
from fangyan.data.splits import TaggedDataConfig
from fangyan.errors import UserError

COLUMNS = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
_FORM, _MISC = 1, 9
# A word, the words of a multi-word token, an empty node.
_ID = re.compile(r"[1-9]\d*(?:-([1-9]\d*)|(\.[1-9]\d*))?|(0\.[1-9]\d*)")
EMPTY = "_"


class Conllu(TaggedDataConfig):
    """CoNLL-U of Universal Dependencies: one column, feature or MISC entry is the tag of each word."""

    format: Literal["conllu"] = "conllu"
    between_examples: ClassVar[str] = "\n"
    has_comments: ClassVar[bool] = True

    column: Annotated[str, Field(pattern=r"^(upos|xpos|deprel|feats|feats\.[^=|\s]+|misc\.[^=|\s]+)$")] = (
        Field(
            ...,
            description="The tag: upos, xpos, deprel, feats (all of them), feats.KEY (_ where a word has "
            "none), or misc.KEY, such as misc.NER (O where a word has none).",
        )
    )

    @override
    def read(self, path: Path) -> Iterator[Example]:
        """Yield the sentences of a file; see :class:`DataConfig`.

        Syntactic words are the tokens. Multi-word tokens and empty nodes are none.
        """
        return examples_of(self.blocks(path, True))

    @override
    def metadata(self, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield the comments ``# key = value`` of each sentence; see :class:`DataConfig`."""
        return comments(self.blocks(path, False))

    @override
    def annotate(self, path: Path, annotations: Annotator) -> Iterator[str]:
        """Yield the lines of a file with predicted tags; see :class:`TaggedDataConfig`.

        Probabilities are in MISC, as ``Probabilities=NOUN:0.9812,VERB:0.0130``.
        """
        return annotate_blocks(self.blocks(path, False), annotations, self._write)

    @override
    def blank(self, example: Example, path: Path) -> str:
        """Return a line for each word, with its number, its form and whether white space follows."""
        tokens = example.fields["tokens"]
        spaces = example.fields.get("spaces", (self.tokens == "words",) * len(tokens))
        lines = []
        for number, (token, space) in enumerate(zip(tokens, spaces, strict=True), start=1):
            misc = EMPTY if space else "SpaceAfter=No"
            lines.append("\t".join([str(number), token, *[EMPTY] * 7, misc]) + "\n")
        return "".join(lines)

    @override
    def blocks(self, path: Path, labelled: bool) -> Iterator[Block]:
        """Yield the sentences of a file, and the lines between them; see :class:`TaggedDataConfig`."""
        sentence: list[str] = []
        start = 1
        for number, raw in read_raw_lines(path):
            text = bare(raw, str(path), number)
            if is_blank(text):
                if sentence:
                    yield self._block(sentence, path, start, labelled)
                    sentence = []
                yield Block([raw])
                continue
            if not sentence:
                start = number
            sentence.append(raw)
        if sentence:
            yield self._block(sentence, path, start, labelled)

    def _block(self, lines: list[str], path: Path, start: int, tagged: bool) -> Block:
        words: list[str] = []
        tags: list[str] = []
        rows: list[int] = []
        spaces: list[bool] = []
        # Of a multi-word token: its form, whether a space follows, its words still to come.
        surface, surface_space, last = "", True, 0
        first = 0
        for i, raw in enumerate(lines):
            text = bare(raw, str(path), start + i)
            if text.startswith("#") and not rows:
                first = i + 1
                continue
            cells, kind = _cells(text, f"{path}:{start + i}")
            if kind == "empty":
                continue
            if kind == "range":
                surface, surface_space = cells[_FORM], _space_after(cells)
                last, begun = int(cells[0].partition("-")[2]), len(words)
                continue
            words.append(cells[_FORM])
            rows.append(i)
            spaces.append(_space_after(cells))
            if tagged:
                tags.append(self._tag(cells, f"{path}:{start + i}"))
            if last and int(cells[0]) == last:
                pieces = "".join(words[begun:]) == surface
                spaces[begun:] = [not pieces] * (len(words) - begun - 1) + [surface_space]
                last = 0
        if not words:
            return Block(lines)
        fields = {"tokens": tuple(words), "spaces": tuple(spaces)} | ({"tags": tuple(tags)} if tagged else {})
        return Block(lines, Example(fields, f"{path}:{start + first}", " ".join(words)), tuple(rows))

    def _tag(self, cells: list[str], source: str) -> str:
        column, _, key = self.column.partition(".")
        value = cells[COLUMNS.index(column)]
        if key:
            return _entries(value).get(key) or ("O" if column == "misc" else EMPTY)
        if value == EMPTY and column in ("upos", "xpos", "deprel"):
            raise UserError(f"{source}: {column} is _, which is none; expected a tag for {cells[_FORM]!r}")
        return value

    def _write(self, block: Block, annotation: Annotation) -> list[str]:
        lines = list(block.lines)
        column, _, key = self.column.partition(".")
        index = COLUMNS.index(column)
        for token, row in enumerate(block.rows):
            text, end = cut_end(lines[row])
            cells = text.split("\t")
            tag = annotation.tags[token]
            if key:
                none = EMPTY if column == "feats" else "O"
                cells[index] = _put(cells[index], key, tag, none, is_sorted=column == "feats")
            else:
                cells[index] = tag
            if likely := likely_tags(annotation, token):
                # MISC is divided by |, and \p stands for it there.
                value = ",".join(likely).replace("|", r"\p")
                cells[_MISC] = _put(cells[_MISC], "Probabilities", value, "", is_sorted=False)
            lines[row] = "\t".join(cells) + end
        return lines


def _cells(text: str, source: str) -> tuple[list[str], str]:
    """Return the ten columns of a line, and whether it is a word, a range of words or an empty node."""
    cells = text.split("\t")
    if len(cells) != len(COLUMNS) or not all(cells):
        raise UserError(
            f"{source}: {len(cells)} columns, expected the 10 of CoNLL-U, separated by tabs and none empty; "
            f"found {text[:80]!r}"
        )
    match = _ID.fullmatch(cells[0])
    if match is None:
        raise UserError(f"{source}: ID is {cells[0]!r}, expected such as 1, 1-2 or 1.1")
    until, below, before = match.groups()
    return cells, "range" if until else "empty" if below or before else "word"


def _space_after(cells: list[str]) -> bool:
    return _entries(cells[_MISC]).get("SpaceAfter") != "No"


def _entries(value: str) -> dict[str, str]:
    """Return ``A=1|B=2`` as a mapping."""
    pairs = (entry.partition("=") for entry in value.split("|"))
    return {key: content for key, equals, content in pairs if equals}


def _put(value: str, key: str, content: str, none: str, *, is_sorted: bool) -> str:
    """Return ``A=1|B=2`` with another value for a key, at its place where it has one.

    Args:
        value: of FEATS or MISC.
        key: to set.
        content: its value.
        none: the value that a missing key stands for: where it is missing, it is not added; FEATS lose it.
        is_sorted: whether keys are in alphabetical order, as in FEATS.
    """
    entries = [] if value == EMPTY else value.split("|")
    place = next((i for i, entry in enumerate(entries) if entry.partition("=")[0] == key), None)
    if place is None:
        if content != none:
            entries.append(f"{key}={content}")
            if is_sorted:
                entries.sort(key=str.lower)
    elif content == EMPTY:
        del entries[place]
    else:
        entries[place] = f"{key}={content}"
    return "|".join(entries) or EMPTY
