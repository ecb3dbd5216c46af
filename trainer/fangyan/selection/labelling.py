"""Label selected sentences in a terminal: the smallest loop that saves each as it is done."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches

from rich.table import Table
from rich.text import Text

from fangyan.data.compression import open_file
from fangyan.data.example import Annotation, Example
from fangyan.errors import UserError
from fangyan.files import REPEAT, whole_file
from fangyan.selection.pool import key_of
from fangyan.selection.writing import Item, Sheet, is_doubtful
from fangyan.tasks.predictor import Predictor
from fangyan.terminal import Terminal, printable

UNDO, QUIT = "u", "q"
_PLACES = re.compile(r"([1-9]\d*)(?:-([1-9]\d*))?")


class LabelledFile:
    """The file of what is labelled: whole on the disk after each example.

    Args:
        sheet: how it is written.
        header: of a new file.

    Attributes:
        done: keys of the examples in it; see :func:`fangyan.selection.pool.key_of`.

    Raises:
        UserError: if there is a file already that is not of the format.
    """

    def __init__(self, sheet: Sheet, header: str):
        self._sheet, self._header = sheet, header
        self._before = ""
        self.done: set[str] = set()
        self._added: list[tuple[str, str]] = []
        if sheet.path.exists():
            self.done = {key_of(example) for example in sheet.data.read(sheet.path)}
            with open_file(sheet.path) as file:
                self._before = file.read().decode("utf-8")
        if self._before and not self._before.endswith("\n"):
            self._before += "\n"
        if self.done and not self._before.endswith(f"\n{sheet.data.between_examples}"):
            self._before += sheet.data.between_examples

    def check(self, items: Sequence[Item], annotations: Sequence[Annotation]) -> None:
        """Refuse what could not be added, before somebody has labelled it.

        Raises:
            UserError: for an example that the format cannot say, or a table of other columns.
        """
        if items:
            self._without_header(self._sheet.text(items, annotations, self._header))

    def add(self, item: Item, annotation: Annotation) -> None:
        """Add an example with its labels, and write the file."""
        text = self._sheet.text([item], [annotation], self._header)
        key = key_of(item.example)
        self._added.append((key, self._without_header(text)))
        self.done.add(key)
        self._write()

    def undo(self) -> None:
        """Take the example that was added last from the file again."""
        key, _ = self._added.pop()
        self.done.remove(key)
        self._write()

    def _without_header(self, text: str) -> str:
        """Return the text of an example without the header, which the file has to have too."""
        if not self._sheet.data.has_header:
            return text
        header, _, rest = text.partition("\n")
        if not self._before:
            self._before = f"{header}\n"
        found = self._before.partition("\n")[0].removeprefix("\ufeff").rstrip("\r")
        if found != header.rstrip("\r"):
            raise UserError(
                f"{self._sheet.path}:1: columns {found[:120]}, expected {header[:120]}, or a new file"
            )
        return rest

    def _write(self) -> None:
        path = self._sheet.path
        with whole_file(path, REPEAT) as partial, open_file(partial, "wt", encoding="utf-8") as file:
            file.write(self._before + "".join(text for _, text in self._added))


class Labelling:
    """The loop over selected examples.

    Args:
        predictor: proposes labels, and knows which there are.
        file: takes what is done.
        terminal: shows what is to do.
    """

    def __init__(self, predictor: Predictor, file: LabelledFile, terminal: Terminal):
        self._predictor = predictor
        self._file = file
        self._terminal = terminal

    def run(self, items: Sequence[Item], annotations: Sequence[Annotation], lines: Iterable[str]) -> int:
        """Ask for the labels of examples until all are done, or somebody leaves.

        Args:
            items: to label.
            annotations: what is predicted for each, with probabilities.
            lines: what the user types; their end leaves, as :data:`QUIT` does.

        Returns:
            How many were labelled.
        """
        for command in (UNDO, QUIT):
            if self._predictor.knows(command) and items and not _is_tagged(items[0]):
                raise UserError(
                    f"--label: the model has a class {command!r}, which is a command here; expected select "
                    "without --label, and an editor"
                )
        if items:
            change = "3 v or 3-5 v 7 n change tags" if _is_tagged(items[0]) else "a class changes it"
            self._say(f"Enter accepts; {change}; {UNDO} undoes; {QUIT} leaves, and the same command goes on")
        typed = iter(lines)
        labels = [proposed(annotation) for annotation in annotations]
        place = 0
        try:
            while place < len(items):
                self._show(items[place].example, annotations[place], labels[place], place, len(items))
                step = self._ask(items[place], labels[place], typed, can_undo=place > 0)
                if step == 0:
                    break
                place += step
        except KeyboardInterrupt:  # all that is done is in the file
            self._terminal.print()
        return place

    def _ask(self, item: Item, labels: list[str], typed: Iterator[str], can_undo: bool) -> int:
        """Change labels as the user says, until the example is done: 1; undone: -1; or to be left: 0."""
        while (line := next(typed, None)) is not None:
            command = line.strip()
            if command == QUIT:
                return 0
            if command == UNDO and can_undo:
                self._file.undo()
                return -1
            try:
                if command:
                    self._change(command, labels, _is_tagged(item))
                    continue
                annotation = self._predictor.corrected(item.example, labels)
            except UserError as error:  # what was typed is asked for again
                self._say(str(error))
                continue
            self._file.add(item, annotation)
            return 1
        return 0

    def _change(self, command: str, labels: list[str], is_tagged: bool) -> None:
        """Change labels as a command says: places and tags by turns, or a class."""
        if command == UNDO:
            raise UserError("nothing to undo: no sentence has been done since the command began")
        if not is_tagged:
            labels[0] = self._known(command)
        else:
            words = command.split()
            if len(words) % 2:
                raise UserError("expected places and tags by turns, such as 3 v, or 3-5 v 7 n")
            changes = [
                (self._range(place, len(labels)), self._known(tag))
                for place, tag in zip(words[::2], words[1::2], strict=True)
            ]
            for places, tag in changes:
                for i in places:
                    labels[i] = tag
        self._say(" ".join(labels))

    def _range(self, place: str, count: int) -> range:
        found = _PLACES.fullmatch(place)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= first <= last <= count:
            raise UserError(f"place {place!r}, expected a number from 1 to {count}, or such as 3-5")
        return range(first - 1, last)

    def _known(self, label: str) -> str:
        if self._predictor.knows(label):
            return label
        known = self._predictor.labels
        near = get_close_matches(label, known, 3, 0.5) or list(known[:8])
        raise UserError(
            f"{label!r} is not among the {len(known)} labels of the model, such as {', '.join(near)}"
        )

    def _show(
        self, example: Example, annotation: Annotation, labels: Sequence[str], place: int, count: int
    ) -> None:
        """Show an example; tokens come last in a row, so that one from right to left moves nothing."""
        self._terminal.print(Text(f"\n{place + 1} of {count}  {printable(example.source)}", style="dim"))
        if "tokens" in example.fields:
            rows = _token_rows(example, annotation, labels)
        else:
            for name in ("text", "pair"):
                if name in example.fields:
                    self._terminal.print(Text(printable(example.fields[name]), style="bold"))
            rows = _class_rows(annotation, labels[0])
        table = Table.grid(padding=(0, 2))
        for cells, style in rows:
            table.add_row(*(Text(printable(cell)) for cell in cells), style=style)
        self._terminal.print(table)

    def _say(self, sentence: str) -> None:
        self._terminal.print(Text(printable(sentence)))


def _is_tagged(item: Item) -> bool:
    return "tokens" in item.example.fields


def proposed(annotation: Annotation) -> list[str]:
    """Return what a model predicts as what a person would type: tags, or a class."""
    if "label" not in annotation.values:
        return list(annotation.tags)
    label = annotation.values["label"]
    return [label if isinstance(label, str) else str(label).lower()]


def _token_rows(
    example: Example, annotation: Annotation, labels: Sequence[str]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield a row for each token, and its style."""
    every = annotation.probabilities or ((),) * len(labels)
    for i, (token, label, likely) in enumerate(
        zip(example.fields["tokens"], labels, every, strict=True), start=1
    ):
        is_changed = label != annotation.tags[i - 1]
        others = " ".join(f"{tag} {probability:.2f}" for tag, probability in likely if tag != label)
        share = dict(likely).get(label)
        in_doubt = is_doubtful(label, likely)
        style = "green" if is_changed else "bold yellow" if in_doubt else ""
        yield (
            (str(i), label, "" if share is None else f"{share:.2f}", others if in_doubt else "", token),
            style,
        )


def _class_rows(annotation: Annotation, label: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield a row for each likely class, and its style."""
    likely = annotation.values.get("probabilities", [])
    for name, probability in likely:
        yield ("→" if name == label else " ", f"{probability:.2f}", name), "bold" if name == label else ""
    if label not in dict(likely):
        yield ("→", "", label), "green"
