"""How a model's scores change where texts are typed otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from fangyan.analysis.bootstrap import Difference, Units, paired
from fangyan.analysis.edits import is_changed
from fangyan.analysis.perturbations import Perturbation
from fangyan.analysis.run_model import Scored
from fangyan.tasks.task import TokenUnit


@dataclass(frozen=True)
class Robustness:
    """Scores of perturbed examples against those of the same examples as they are.

    Attributes:
        name: of the perturbation.
        changed: share of the examples that it changed.
        agreement: share of the labels (of tokens, or of texts) that are predicted as before; None of numbers.
        metrics: of all examples, as they are and perturbed.
    """

    name: str
    changed: float
    agreement: float | None
    metrics: dict[str, Difference]


@dataclass(frozen=True)
class RobustnessReport:
    """What all perturbations did.

    Attributes:
        metric: the task's primary one.
        rate: share of the words with a slip of the keys.
        units: what was resampled for the intervals, in words.
        perturbations: those that changed something.
        untouched: names of those that found nothing to change.
    """

    metric: str
    rate: float
    units: str
    perturbations: list[Robustness]
    untouched: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return all of it as what JSON holds."""
        return asdict(self)

    @property
    def notes(self) -> list[str]:
        """Return what was resampled, what was not scored, and what makes no difference."""
        notes = [self.units]
        if self.untouched:
            notes.append(f"nothing in the data to change, so not scored: {', '.join(self.untouched)}")
        if same := [row.name for row in self.perturbations if row.agreement == 1.0]:
            notes.append(f"no label is another under: {', '.join(same)}")
        return notes

    def tables(self) -> list[Table]:
        """Return the scores, the worst first."""
        found = Table(title="Robustness")
        heads = (
            "changed",
            self.metric.replace("_", " "),
            "difference",
            "95% interval",
            "same labels",
        )
        found.add_column("perturbation", overflow="fold", min_width=len("perturbation"))
        for head in heads:
            found.add_column(head, justify="right", no_wrap=head == "95% interval")
        rows = sorted(self.perturbations, key=lambda row: row.metrics[self.metric].difference)
        if rows:
            found.add_row("none", "–", f"{rows[0].metrics[self.metric].left:.2f}", "–", "–", "–")
        for row in rows:
            value = row.metrics[self.metric]
            found.add_row(
                *(escape(row.name), f"{row.changed:.1%}", f"{value.right:.2f}", f"{value.difference:+.2f}"),
                value.bounds,
                "–" if row.agreement is None else f"{row.agreement:.1%}",
            )
        return [found]


def robustness(
    scored: Scored,
    perturbations: Sequence[Perturbation],
    rate: float,
    units: Units,
    unit: TokenUnit,
    resamples: int,
    seed: int,
) -> RobustnessReport:
    """Return what perturbations do to a model's scores.

    Args:
        scored: the examples as they are; of a task that predicts labels.
        perturbations: to try.
        rate: share of the words with a slip of the keys, for the report.
        units: what is resampled for intervals.
        unit: what tokens are.
        resamples: how many.
        seed: of the perturbations and the resamples.
    """
    found, untouched = [], []
    for perturbation in perturbations:
        examples = [perturbation(example, f"{seed}/{i}", unit) for i, example in enumerate(scored.examples)]
        changed = sum(map(is_changed, scored.examples, examples))
        if not changed:
            untouched.append(perturbation.name)
            continue
        other = Scored(scored.run, examples)
        metrics = paired(scored.resampler, other.resampler, units, resamples, seed)
        found.append(
            Robustness(perturbation.name, changed / len(examples), agreement(scored, other), metrics)
        )
    return RobustnessReport(scored.run.task.primary_metric, rate, units.sentence, found, untouched)


def agreement(one: Scored, other: Scored) -> float | None:
    """Return the share of labels that are predicted alike; None of numbers, and of models without labels."""
    if one.predicted is None or other.predicted is None:
        return None
    pairs = [
        pair
        for sides in zip(one.predicted, other.predicted, strict=True)
        for pair in zip(*sides, strict=True)
    ]
    if any(isinstance(left, float) for left, _ in pairs):
        return None
    return sum(bool(left == right) for left, right in pairs) / max(len(pairs), 1)
