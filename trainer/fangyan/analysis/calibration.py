"""Whether a model is right as often as its probabilities say, and the temperature that makes it so.

Scores are divided by one temperature, fitted on dev, before they become probabilities (Guo et al. 2017, arXiv
1706.04599). It changes no label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from fangyan.analysis.run_model import Scored
from fangyan.data.tokenization import IGNORE_INDEX
from fangyan.errors import UserError
from fangyan.tasks.probabilities import log_softmax

# Of Guo et al.
BINS = 15
_TEMPERATURES = 0.05, 20.0


@dataclass(frozen=True)
class Bin:
    """Predictions whose confidence is in one interval.

    Attributes:
        low: bound of the interval, excluded.
        high: the other, included.
        count: how many predictions.
        confidence: their mean probability.
        accuracy: share of them that is right.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Reliability:
    """Probabilities against what was right.

    Attributes:
        nll: mean negative log-likelihood of the right class, in nats, where it was learned.
        ece: expected calibration error in percent: the mean distance of confidence and accuracy over the
            bins, weighted by their counts.
        bins: with a prediction at least.
    """

    nll: float
    ece: float
    bins: list[Bin]


@dataclass(frozen=True)
class Calibration:
    """A model's reliability at temperature 1, and at the one that fits dev best.

    Attributes:
        temperature: fitted on dev.
        scored_on: what the reliability is of: files or a split.
        count: tokens or texts.
        unlearned: of these, how many have a class that the model has not learned.
        before: at temperature 1.
        after: at the fitted one.
    """

    temperature: float
    scored_on: str
    count: int
    unlearned: int
    before: Reliability
    after: Reliability

    def as_json(self) -> dict[str, Any]:
        """Return all of it as what JSON holds."""
        return asdict(self)

    @property
    def is_bound(self) -> bool:
        """Return whether dev fits no temperature between the bounds: of few examples all are right, say."""
        return any(abs(math.log(self.temperature / bound)) < 0.01 for bound in _TEMPERATURES)

    @property
    def notes(self) -> list[str]:
        """Return what was scored, and what the temperature is worth."""
        notes = [f"calibration of {self.count:,} predictions on {self.scored_on}; fitted on dev"]
        if self.is_bound:
            notes.append(
                f"dev fits no temperature: {self.temperature:.3g} is the bound, where nearly all of dev is "
                "right, or says nothing"
            )
        elif self.after.ece >= self.before.ece:
            notes.append("the temperature gives nothing here: the calibration error is as large as without")
        if self.scored_on == "the dev split":
            notes.append("there is no test split: errors are of dev, on which the temperature was fitted")
        if self.unlearned:
            notes.append(
                f"{self.unlearned:,} of {self.count:,} classes were not learned, and count as errors"
            )
        return notes

    def tables(self) -> list[Table]:
        """Return the errors before and after."""
        found = Table(title="Calibration")
        found.add_column("temperature")
        for head in ("ECE, percent", "negative log-likelihood"):
            found.add_column(head, justify="right")
        for name, side in (("1", self.before), (f"{self.temperature:.3f}", self.after)):
            found.add_row(name, f"{side.ece:.2f}", f"{side.nll:.4f}")
        return [found]


def calibrate(dev: Scored, scored: Scored, scored_on: str) -> Calibration:
    """Return how well a model's probabilities are calibrated.

    Args:
        dev: what the temperature is fitted on; of a task with one class for each token or text.
        scored: what the errors are of.
        scored_on: what that is called.

    Raises:
        UserError: if dev has nothing that the model has learned.
    """
    fitting, found = (side.run.task.class_scores(side.examples, side.outputs) for side in (dev, scored))
    assert fitting is not None
    assert found is not None
    temperature = fit_temperature(*fitting)
    return Calibration(
        temperature,
        scored_on,
        len(found[1]),
        int((found[1] == IGNORE_INDEX).sum()),
        reliability(*found),
        reliability(*found, temperature),
    )


def fit_temperature(scores_NC: NDArray[np.floating[Any]], gold_N: NDArray[np.int64]) -> float:
    """Return the temperature with the least negative log-likelihood, which is convex in its inverse.

    Args:
        scores_NC: logits or log-probabilities.
        gold_N: right classes; ``IGNORE_INDEX`` is left out.

    Raises:
        UserError: if nothing is left.
    """
    from scipy.optimize import minimize_scalar

    learned = gold_N != IGNORE_INDEX
    if not learned.any():
        raise UserError(
            "splits/dev.jsonl: no label that the model has learned, expected some to calibrate on"
        )
    scores, gold = scores_NC[learned].astype(np.float64), gold_N[learned]
    found = minimize_scalar(
        lambda log: _nll(log_softmax(scores, math.exp(log)), gold),
        bounds=tuple(map(math.log, _TEMPERATURES)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(float(found.x))


def reliability(
    scores_NC: NDArray[np.floating[Any]], gold_N: NDArray[np.int64], temperature: float = 1.0
) -> Reliability:
    """Return errors of probabilities in 15 bins of equal width, by each most likely class.

    Args:
        scores_NC: logits or log-probabilities.
        gold_N: right classes; ``IGNORE_INDEX`` is an error.
        temperature: that scores are divided by.
    """
    logs_NC = log_softmax(scores_NC.astype(np.float64), temperature)
    learned = gold_N != IGNORE_INDEX
    nll = _nll(logs_NC[learned], gold_N[learned]) if learned.any() else math.nan
    confidence_N = np.exp(logs_NC.max(1))
    right_N = logs_NC.argmax(1) == gold_N
    bins = _bins(confidence_N, right_N)
    distances = (bin.count * abs(bin.confidence - bin.accuracy) for bin in bins)
    return Reliability(nll, 100.0 * sum(distances) / max(len(gold_N), 1), bins)


def _bins(confidence_N: NDArray[np.float64], right_N: NDArray[np.bool_]) -> list[Bin]:
    edges = np.linspace(0.0, 1.0, BINS + 1)
    place_N = np.clip(np.searchsorted(edges, confidence_N, side="left") - 1, 0, BINS - 1)
    found = []
    for i in range(BINS):
        inside = place_N == i
        if count := int(inside.sum()):
            bounds = float(edges[i]), float(edges[i + 1])
            found.append(
                Bin(*bounds, count, float(confidence_N[inside].mean()), float(right_N[inside].mean()))
            )
    return found


def _nll(logs_NC: NDArray[np.float64], gold_N: NDArray[np.int64] | Sequence[int]) -> float:
    return -float(logs_NC[np.arange(len(logs_NC)), gold_N].mean())
