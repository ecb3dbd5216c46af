"""``fangyan select``: from a file of sentences to one of those worth labelling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fangyan.data.example import Annotation, Example
from fangyan.errors import UserError
from fangyan.inference.annotate import format_of
from fangyan.inference.load import load
from fangyan.selection.labelling import LabelledFile, Labelling
from fangyan.selection.pool import key_of, labelled_examples, read_pool
from fangyan.selection.select import choose
from fangyan.selection.strategies import Strategy
from fangyan.selection.writing import Item, Sheet, without_probabilities
from fangyan.tasks.predictor import Predictor
from fangyan.terminal import Terminal, say_later

# Likely tags or classes that are shown beside the first.
LIKELY = 3

Say = Callable[[str], None]


@dataclass(frozen=True)
class Selection:
    """A file of sentences, the model that they are selected for, and where they go.

    Attributes:
        run: a run folder, or an exported model.
        predictor: its model.
        file: the sentences.
        examples: in it.
        sheet: how those that are selected are written.
        output: the user's file, or None.
    """

    run: Path
    predictor: Predictor
    file: Path
    examples: Sequence[Example]
    sheet: Sheet
    output: Path | None

    @classmethod
    def of(
        cls,
        run: Path,
        file: Path,
        output: Path | None = None,
        wanted: str | None = None,
        source: str | None = None,
    ) -> Selection:
        """Load a model and read a file.

        Args:
            run: a run folder, or an exported model.
            file: texts, one per line, or of a format.
            output: where selected sentences go; its ending says in which format.
            wanted: the file's format, where neither its name nor the run says it; ``text`` is texts.
            source: name of the data set that the sentences are of.
        """
        data = None if wanted == "text" else format_of(run, file, wanted, source)
        predictor = load(run, source)
        next(iter(predictor.score([])), None)  # refuses other models before a long file is read
        examples = read_pool(predictor, file, data)
        sheet = Sheet.of(run, output, (file, data), source, "tokens" in examples[0].fields)
        return cls(run, predictor, file, examples, sheet, output)

    def check(self, resumes: bool) -> None:
        """Refuse an output that is the input, or that holds what people may have corrected.

        Args:
            resumes: whether a file of what is labelled goes on.
        """
        if self.output is None or not self.output.is_file():
            return
        if self.output.samefile(self.file):
            raise UserError(f"--output {self.output}: the file of --input, expected another")
        if not resumes:
            raise UserError(f"--output {self.output}: it exists, and may be corrected; expected a new file")

    def text(self, number: int, strategy: str, seed: int, say: Say) -> str:
        """Return a file of selected sentences with what the model predicts; see :meth:`Sheet.text`."""
        items = self._select(number, strategy, seed, say)
        return self.sheet.text(items, self._predicted(items), self.sheet.header(self.file))

    def label(
        self, number: int, strategy: str, seed: int, lines: Iterable[str], terminal: Terminal, say: Say
    ) -> tuple[int, int]:
        """Let somebody label selected sentences, some of which may be in the output already.

        Returns:
            How many are labelled, of how many.
        """
        file = LabelledFile(self.sheet, self.sheet.header(self.file))
        items = self._select(number, strategy, seed, say)
        before = len(file.done)
        left = [item for item in items if key_of(item.example) not in file.done]
        left = left[: max(number - before, 0)]
        predicted = self._predicted(left)
        file.check(left, [without_probabilities(each) for each in predicted])
        done = Labelling(self.predictor, file, terminal).run(left, predicted, lines)
        return before + done, before + len(left)

    def _select(self, number: int, strategy: Strategy | str, seed: int, say: Say) -> list[Item]:
        labelled = labelled_examples(self.run, say)
        with say_later(f"looking at {len(self.examples):,} sentences"):
            chosen = choose(self.predictor, self.examples, number, strategy, seed, labelled)
        items = self.sheet.items(self.examples, self.file, chosen)
        units = sum(len(item.example.fields.get("tokens", ())) for item in items)
        tokens = f" of {units:,} tokens" if units else ""
        say(f"{len(items):,} of {len(self.examples):,} sentences{tokens}, by {strategy}")
        return items

    def _predicted(self, items: Sequence[Item]) -> list[Annotation]:
        return list(self.predictor.annotate((item.example for item in items), LIKELY))
