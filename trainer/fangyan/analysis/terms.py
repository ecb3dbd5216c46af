"""Counterfactual pairs of terms: what a model says where a sentence speaks of somebody else.

Each sentence with one of the terms is read twice, with all terms of the one side and with all of the other.
What is right for it stays: a difference between the two is the model's (Garg et al. 2019, arXiv 1809.10610).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from fangyan.analysis.bootstrap import Difference, Units, paired
from fangyan.analysis.edits import WHOLE, edited, replaced
from fangyan.analysis.robustness import agreement
from fangyan.analysis.run_model import RunModel, Scored
from fangyan.analysis.tables import check_once, read_pairs
from fangyan.data.example import Example
from fangyan.data.masking import UNSPACED
from fangyan.errors import UserError
from fangyan.tasks.task import TokenUnit

_INNER = re.compile(rf"[^\W{UNSPACED}]")


@dataclass(frozen=True)
class Terms:
    """A list of pairs.

    Attributes:
        path: of its file.
        sides: what the two columns are called.
        pairs: a term of each.
    """

    path: Path
    sides: tuple[str, str]
    pairs: list[tuple[str, str]]

    @classmethod
    def read(cls, path: Path, unit: TokenUnit | None) -> Terms:
        """Read a file of two columns with their names in its first line.

        Args:
            path: of the file.
            unit: what tokens are; None of texts, in which terms may have any length.

        Raises:
            UserError: naming the line that is no pair, whose terms are of other numbers of tokens, or one of
                which was there before.
        """
        (_, *sides), *rows = read_pairs(path)
        if not rows:
            raise UserError(f"{path}: one line, expected the names of the two sides and then pairs of terms")
        lines: dict[str, int] = {}
        for number, left, right in rows:
            for term in dict.fromkeys((left, right)):
                check_once(path, number, term, lines)
            if left == right:
                raise UserError(f"{path}:{number}: both sides are {left!r}, expected two terms")
            sizes = [0 if unit is None else len(_tokens(term, unit)) for term in (left, right)]
            if sizes[0] != sizes[1]:
                raise UserError(
                    f"{path}:{number}: {left!r} is {sizes[0]} {unit} and {right!r} is {sizes[1]}, "
                    "expected as many"
                )
        return cls(path, (sides[0], sides[1]), [(left, right) for _, left, right in rows])


@dataclass(frozen=True)
class Gap:
    """How scores differ between the sides of some pairs.

    Attributes:
        pairs: such as "he / she"; or all of them.
        examples: that have one of the terms.
        agreement: share of the labels that are predicted alike; None of numbers.
        metrics: of these examples with the left terms, and with the right.
    """

    pairs: str
    examples: int
    agreement: float | None
    metrics: dict[str, Difference]


@dataclass(frozen=True)
class TermReport:
    """The gaps of a list of terms.

    Attributes:
        metric: the task's primary one.
        file: of the list.
        sides: what its columns are called.
        units: what was resampled for the intervals, in words.
        gaps: of all pairs, then of each.
        missing: pairs that no example has.
    """

    metric: str
    file: str
    sides: tuple[str, str]
    units: str
    gaps: list[Gap]
    missing: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return all of it as what JSON holds."""
        return asdict(self)

    @property
    def notes(self) -> list[str]:
        """Return what was resampled, whether there is no gap, and which pairs were not scored."""
        notes = [self.units] if self.gaps else []
        if self.gaps and all(gap.agreement == 1.0 for gap in self.gaps):
            notes.append(f"no label is another with terms of {self.sides[0]} or of {self.sides[1]}")
        if self.missing:
            notes.append(f"in no example, so not scored: {', '.join(self.missing)}")
        return notes

    def tables(self) -> list[Table]:
        """Return the gaps, if any example has a term."""
        if not self.gaps:
            return []
        found = Table(title=escape(f"Terms of {self.file}"))
        metric = self.metric.replace("_", " ")
        heads = (
            "examples",
            *(f"{metric}, {side}" for side in self.sides),
            "gap",
            "95% interval",
            "same labels",
        )
        found.add_column("terms", overflow="fold")
        for head in heads:
            found.add_column(escape(head), justify="right", no_wrap=head == "95% interval")
        for gap in self.gaps:
            value = gap.metrics[self.metric]
            found.add_row(
                *(escape(gap.pairs), f"{gap.examples:,}", f"{value.left:.2f}", f"{value.right:.2f}"),
                f"{value.difference:+.2f}",
                value.bounds,
                "–" if gap.agreement is None else f"{gap.agreement:.1%}",
            )
        return [found]


def term_report(
    run: RunModel,
    examples: Sequence[Example],
    terms: Terms,
    units: Units,
    unit: TokenUnit,
    resamples: int,
    seed: int,
) -> TermReport:
    """Return how a model's scores differ between the sides of pairs of terms.

    Args:
        run: the model; of a task that predicts labels.
        examples: of which those with a term are read.
        terms: the pairs.
        units: what is resampled for intervals.
        unit: what tokens are.
        resamples: how many.
        seed: of the resamples.
    """
    gaps, missing = [], []
    every = [("all pairs", terms.pairs)] if len(terms.pairs) > 1 else []
    for name, pairs in [*every, *((" / ".join(pair), [pair]) for pair in terms.pairs)]:
        sides = [[_with(example, pairs, side, unit) for example in examples] for side in (0, 1)]
        places = np.array([i for i, (left, right) in enumerate(zip(*sides, strict=True)) if left != right])
        if not len(places):
            missing.append(name)
            continue
        left, right = (Scored(run, [side[i] for i in places]) for side in sides)
        metrics = paired(left.resampler, right.resampler, units.subset(places), resamples, seed)
        gaps.append(Gap(name, len(places), agreement(left, right), metrics))
    missing = [name for name in missing if name != "all pairs"]
    return TermReport(run.task.primary_metric, str(terms.path), terms.sides, units.sentence, gaps, missing)


def _with(example: Example, pairs: Sequence[tuple[str, str]], side: int, unit: TokenUnit) -> Example:
    """Return an example with the terms of one side in place of those of both."""
    if "tokens" not in example.fields:
        wanted = {term: pair[side] for pair in pairs for term in pair}
        pattern = re.compile("|".join(map(_pattern, sorted(wanted, key=lambda term: -len(term)))))
        return edited(
            example,
            lambda texts: [pattern.sub(lambda m: wanted[m[0]], text) for text in texts],
            pieces=WHOLE,
        )
    runs = {_tokens(term, unit): _tokens(pair[side], unit) for pair in pairs for term in pair}
    return edited(example, lambda tokens: replaced(tokens, runs), unit)


def _tokens(term: str, unit: TokenUnit) -> tuple[str, ...]:
    return tuple("".join(term.split())) if unit == "characters" else tuple(term.split())


def _pattern(term: str) -> str:
    """Return a pattern of a term that is no part of a word, which scripts without spaces do not show."""
    inner = _INNER.pattern
    before = rf"(?<!{inner})" if _INNER.match(term[0]) else ""
    after = rf"(?!{inner})" if _INNER.match(term[-1]) else ""
    return f"{before}{re.escape(term)}{after}"
