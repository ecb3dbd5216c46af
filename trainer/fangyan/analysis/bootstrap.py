"""Confidence intervals and paired tests by the bootstrap, over sentences or groups of them.

Examples are drawn with replacement, as many as there are, and every draw is scored by all of a task's metrics
(Efron 1979). Two models are scored on the same draws (Koehn 2004; Berg-Kirkpatrick et al. 2012). Sentences of
one conversation are not independent: whole groups are drawn where there are enough of them (Cameron, Gelbach
& Miller 2008).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fangyan.data.example import Example
from fangyan.errors import UserError
from fangyan.progress import track
from fangyan.tasks.resampling import Resampler, Weights

By = Literal["auto", "examples", "groups"]
# Groups below which an interval of whole groups is too narrow to be shown unasked.
ENOUGH_GROUPS = 20
# Examples or groups below which there is no interval at all: resamples of so few are too much alike.
LEAST = 10
RESAMPLES = 1000
# Of an interval, in percent of the resamples.
_BOUNDS = (2.5, 97.5)
# Weights of a chunk of resamples: 32 MB.
_CHUNK = 4_000_000


class Interval(NamedTuple):
    """A 95% interval by percentiles of the resamples."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How a metric of two models on the same examples differs.

    Attributes:
        left: the one's score.
        right: the other's.
        difference: ``right - left``.
        interval: of the difference; None of fewer than :data:`LEAST` examples or groups.
        p: probability of a difference as large, either way, if there were none; None as well.
    """

    left: float
    right: float
    difference: float
    interval: Interval | None
    p: float | None

    @property
    def probability(self) -> str:
        """Return p as tables have it."""
        return "–" if self.p is None else "<0.001" if self.p < 0.001 else f"{self.p:.3f}"

    @property
    def bounds(self) -> str:
        """Return the interval as tables have it."""
        return "–" if self.interval is None else "{:+.2f} to {:+.2f}".format(*self.interval)


@dataclass(frozen=True)
class Units:
    """What is drawn: single examples, or whole groups.

    Attributes:
        kind: of these.
        unit_E: the unit of each example, numbered from 0.
        groups: how many groups the examples are of.
    """

    kind: Literal["examples", "groups"]
    unit_E: NDArray[np.int64]
    groups: int

    @classmethod
    def of(cls, examples: Sequence[Example], by: By = "auto") -> Units:
        """Return what to draw of examples.

        Args:
            examples: that are scored.
            by: ``auto`` draws groups if there are :data:`ENOUGH_GROUPS`.

        Raises:
            UserError: for groups that are fewer than :data:`LEAST`.
        """
        places: dict[str, int] = {}
        group_E = np.array([places.setdefault(example.group, len(places)) for example in examples])
        if by == "groups" and len(places) < LEAST:
            raise UserError(
                f"--by groups: the data has {len(places)} groups, expected {LEAST} or more, or --by examples"
            )
        if by == "groups" or (by == "auto" and ENOUGH_GROUPS <= len(places) < len(examples)):
            return cls("groups", group_E, len(places))
        return cls("examples", np.arange(len(examples)), len(places))

    def __len__(self) -> int:
        """Return how many there are."""
        return self.groups if self.kind == "groups" else len(self.unit_E)

    def subset(self, indices: NDArray[np.int64]) -> Units:
        """Return the units of some of the examples."""
        distinct, unit_E = np.unique(self.unit_E[indices], return_inverse=True)
        groups = len(distinct) if self.kind == "groups" else self.groups
        return Units(self.kind, unit_E.astype(np.int64), groups)

    @property
    def sentence(self) -> str:
        """Return what is drawn, and what that means for an interval."""
        if self.kind == "groups":
            said = f"resampled by {self.groups:,} groups that splits keep together, such as conversations"
            if self.groups < ENOUGH_GROUPS:
                said += f"; intervals of fewer than {ENOUGH_GROUPS} may be too narrow"
            return said
        said = f"resampled by {len(self.unit_E):,} examples"
        if self.groups < len(self.unit_E):
            few = "1 group is" if self.groups == 1 else f"{self.groups:,} groups are"
            said += (
                f", as {few} too few; those of one group (a conversation, say) are not independent, so that "
                "intervals may be too narrow"
                if self.groups < ENOUGH_GROUPS
                else f", which are of {self.groups:,} groups"
            )
        return said

    def draws(self, resamples: int, seed: int) -> Iterator[Weights]:
        """Yield how often each example occurs in each resample, (R, E), some resamples at a time."""
        generator = np.random.default_rng(seed)
        shares = np.full(len(self), 1.0 / len(self))
        size = max(1, _CHUNK // max(len(self.unit_E), 1))
        for first in track(range(0, resamples, size), "resampling"):
            counts_RU = generator.multinomial(len(self), shares, size=min(size, resamples - first))
            yield counts_RU[:, self.unit_E].astype(np.float64)


def intervals(
    resampler: Resampler, units: Units, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Return the 95% interval of each metric; none of fewer than :data:`LEAST` units.

    Args:
        resampler: of the examples.
        units: what is drawn of them.
        resamples: how many draws.
        seed: of the draws.
    """
    if len(units) < LEAST:
        return {}
    found = [resampler(weights_RE) for weights_RE in units.draws(resamples, seed)]
    return {name: _interval(np.concatenate([part[name] for part in found])) for name in found[0]}


def paired(
    left: Resampler, right: Resampler, units: Units, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Difference]:
    """Return how the metrics of two models on the same examples differ.

    p is the share of resamples whose difference is at least as far from the observed one as that is from 0,
    the observed one counted among them (Berg-Kirkpatrick et al. 2012, two-sided; Davison & Hinkley 1997).

    Args:
        left: of the one model.
        right: of the other.
        units: what is drawn of the examples.
        resamples: how many draws.
        seed: of the draws.

    Raises:
        UserError: for a metric that is not finite.
    """
    scores = left.metrics(), right.metrics()
    for name in scores[0]:
        if not all(np.isfinite(side[name]) for side in scores):
            raise UserError(f"{name} is not finite, expected examples with something to score")
    if len(units) < LEAST:
        return {
            name: Difference(score, scores[1][name], scores[1][name] - score, None, None)
            for name, score in scores[0].items()
        }
    drawn: dict[str, list[NDArray[np.float64]]] = {name: [] for name in scores[0]}
    for weights_RE in units.draws(resamples, seed):
        sides = left(weights_RE), right(weights_RE)
        for name, parts in drawn.items():
            parts.append(sides[1][name] - sides[0][name])
    found = {}
    for name, parts in drawn.items():
        differences_R = np.concatenate(parts)
        observed = scores[1][name] - scores[0][name]
        # A difference that rounding makes counts as none.
        as_far = np.abs(differences_R - observed) >= abs(observed) - 1e-9
        p = (1.0 + float(as_far.sum())) / (1.0 + len(differences_R))
        found[name] = Difference(scores[0][name], scores[1][name], observed, _interval(differences_R), p)
    return found


def _interval(values_R: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(values_R, _BOUNDS)
    return Interval(float(low), float(high))
