"""Selected sentences as files to correct: in the run's own format, with what its model predicts."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fangyan.data.compression import suffix
from fangyan.data.example import BOM, Annotation, Example
from fangyan.data.splits import TaggedDataConfig
from fangyan.errors import UserError
from fangyan.inference.annotate import format_of

# A tag that is less likely is in doubt: others that are likely are written beside it.
DOUBT = 0.95
_SOURCE = "# source = "
_IN_DOUBT = re.compile(r"# [1-9]\d* = ")


@dataclass(frozen=True, slots=True)
class Item:
    """An example that was selected.

    Attributes:
        example: without labels.
        lines: of its file, where they are written with all that they have; else it is written anew.
    """

    example: Example
    lines: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Sheet:
    """A file of selected examples.

    Attributes:
        path: of the file; its ending is that of the format.
        data: the format.
        keeps_lines: whether examples keep the lines of the file that they come from.
    """

    path: Path
    data: TaggedDataConfig
    keeps_lines: bool = False

    @classmethod
    def of(
        cls,
        run: Path,
        output: Path | None,
        pool: tuple[Path, TaggedDataConfig | None],
        source: str | None,
        has_tokens: bool,
    ) -> Sheet:
        """Return how examples are written: as the file that they come from, or as the name's ending says.

        Args:
            run: says more of the format.
            output: the file; None, or an ending that says nothing, is CoNLL for tokens, else JSON lines.
            pool: the file that they come from, and its format; None is texts.
            source: of which of several data sets they are.
            has_tokens: whether examples are tokens.

        Raises:
            UserError: if the format needs more than its name, or has no place for what the model predicts.
        """
        default = Path("selected.conll" if has_tokens else "selected.jsonl")
        path = default if output is None else output
        file, data = pool
        if data is not None and suffix(path) == suffix(file):
            return cls(path, data, keeps_lines=True)
        found = format_of(run, path, None, source) or format_of(run, default, None, source)
        assert found is not None  # its ending says it
        return cls(path, found)

    def items(self, examples: Sequence[Example], file: Path, indices: Sequence[int]) -> list[Item]:
        """Return selected examples with the lines of their file, where those are kept.

        Args:
            examples: of the file.
            file: that they come from.
            indices: of those that were selected.
        """
        lines: dict[int, tuple[str, ...]] = {}
        if self.keeps_lines:
            wanted = set(indices)
            blocks = (block for block in self.data.blocks(file, False) if block.example is not None)
            # The byte order mark stays where it was: at the begin of the file.
            lines = {
                i: tuple(line.removeprefix(BOM) for line in block.lines)
                for i, block in enumerate(blocks)
                if i in wanted
            }
        return [Item(examples[i], lines.get(i)) for i in indices]

    def header(self, file: Path) -> str:
        """Return what the file begins with: that of the file whose lines it keeps, or its own."""
        if not (self.keeps_lines and self.data.has_header):
            return self.data.header(self.path)
        return _ended("".join(next(iter(self.data.blocks(file, False))).lines).removeprefix(BOM))

    def text(self, items: Sequence[Item], annotations: Sequence[Annotation], header: str) -> str:
        """Return a file of items with their annotations.

        Where # begins a comment, one says where the sentence is from, and others name the tags in doubt: such
        files are read as they are. Other formats have probabilities under a name of their own.

        Args:
            items: to write.
            annotations: one for each, with probabilities where they are to be written.
            header: see :meth:`header`.

        Raises:
            UserError: naming an example that cannot be written in this format.
        """
        blank = [header]
        for item, annotation in zip(items, annotations, strict=True):
            lines = [self.data.blank(item.example, self.path)] if item.lines is None else list(item.lines)
            if self.data.has_comments:
                lines = _commented(lines, item.example, annotation)
            blank += (_ended(line) for line in lines)
            blank.append(self.data.between_examples)
        bare = [without_probabilities(each) if self.data.has_comments else each for each in annotations]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"selected{suffix(self.path)}"
            path.write_text("".join(blank), encoding="utf-8", newline="")
            self._check(path, items)
            return "".join(self.data.annotate(path, lambda examples: _each(examples, bare)))

    def _check(self, path: Path, items: Sequence[Item]) -> None:
        """Refuse examples that would be read as others: a token with a tab, say."""
        found: list[dict[str, Any]] = []
        with suppress(UserError):  # of the first that is amiss
            found.extend(dict(example.fields) for example in self.data.read_unlabelled(path))
        for item, fields in zip(items, [*found, *[{}] * (len(items) - len(found))], strict=False):
            names = [name for name in ("tokens", "text", "pair") if name in item.example.fields]
            if any(fields.get(name) != item.example.fields[name] for name in names):
                shown = "".join(item.example.fields[names[0]])[:60]
                raise UserError(
                    f"{item.example.source}: {shown!r} cannot be written as {self.data.format}, expected "
                    "another format, such as --output FILE.jsonl"
                )


def _each(examples: Iterable[Example], annotations: Iterable[Annotation]) -> Iterator[Annotation]:
    """Yield an annotation as each example of a file is read."""
    for _, annotation in zip(examples, annotations, strict=True):
        yield annotation


def without_probabilities(annotation: Annotation) -> Annotation:
    """Return what is predicted alone."""
    values = {name: value for name, value in annotation.values.items() if name != "probabilities"}
    return Annotation(annotation.tags, None, annotation.labels, values)


def _commented(lines: Sequence[str], example: Example, annotation: Annotation) -> list[str]:
    """Return an example's lines after where it is from, and the likely tags of each token in doubt.

    What an earlier selection has said of its doubts is out of date.
    """
    sources = [line for line in lines if line.startswith(_SOURCE)] or [f"{_SOURCE}{example.source}"]
    doubts = []
    for place, likely in enumerate(annotation.probabilities or ()):
        if is_doubtful(annotation.tags[place], likely):
            shown = " ".join(f"{tag}:{probability:.4f}" for tag, probability in likely)
            doubts.append(f"# {place + 1} = {example.fields['tokens'][place]} {shown}")
    others = [line for line in lines if not line.startswith(_SOURCE) and not _IN_DOUBT.match(line)]
    return [*sources, *doubts, *others]


def is_doubtful(tag: str, likely: Sequence[tuple[str, float]]) -> bool:
    """Return whether a tag's probability is below :data:`DOUBT`, or it is not among the likely ones."""
    return dict(likely).get(tag, 0.0) < DOUBT


def _ended(line: str) -> str:
    """Return a line with a line end: a file's last may have none."""
    return line if line.endswith("\n") else f"{line}\n"
