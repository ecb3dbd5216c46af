"""How well each class is predicted, and which are taken for each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table

from fangyan.files import whole_file

# Classes that a terminal shows, the most frequent; the file has all.
_SHOWN = 20


class ClassScores(NamedTuple):
    """Scores of one class, in percent.

    Attributes:
        name: of the class.
        precision: of what was predicted to be of this class, how much is.
        recall: of what is of this class, how much was predicted to be.
        f1: their harmonic mean.
        support: how often the class occurs.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int


class Confusion(NamedTuple):
    """Two labels that a model takes for each other.

    Attributes:
        gold: what the data has.
        predicted: what the model says.
        times: how often, in tokens or texts.
    """

    gold: str
    predicted: str
    times: int


@dataclass(frozen=True)
class Report:
    """What metrics sum up.

    Attributes:
        unit: what a class is of, such as an entity.
        classes: the most frequent first.
        confusions: the most frequent first.
        counted: what confusions are of.
    """

    unit: str
    classes: list[ClassScores]
    confusions: list[Confusion]
    counted: str = "tokens"

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self) | {
            "classes": [scores._asdict() for scores in self.classes],
            "confusions": [confusion._asdict() for confusion in self.confusions],
        }

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        with whole_file(path) as partial:
            partial.write_text(json.dumps(self.as_json(), ensure_ascii=False, indent=1), encoding="utf-8")

    def tables(self, title: str) -> Iterator[Table]:
        """Yield it as tables for a terminal."""
        shown = min(len(self.classes), _SHOWN)
        most = f", the {shown} most frequent of {len(self.classes)}" if shown < len(self.classes) else ""
        table = Table(self.unit, title=f"{title} by {self.unit} (percent){most}", title_justify="left")
        for column in ("precision", "recall", "f1", "support"):
            table.add_column(column, justify="right")
        for scores in self.classes[:_SHOWN]:
            percents = (f"{value:.1f}" for value in scores[1:4])
            table.add_row(escape(scores.name), *percents, f"{scores.support:,}")
        yield table
        if self.confusions:
            table = Table("gold", "predicted", title=f"{title}: most confused", title_justify="left")
            table.add_column(self.counted, justify="right")
            for gold, predicted, times in self.confusions[:10]:
                table.add_row(escape(gold), escape(predicted), f"{times:,}")
            yield table
