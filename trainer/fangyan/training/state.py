"""Where a run is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class State:
    """Where a run is; with the seed and the recipe it determines everything to come.

    Attributes:
        step: optimizer steps done.
        epoch: complete epochs, evaluated.
        step_in_epoch: steps done of the next one.
        ranks: that the run has.
        micro_batches: of a step, over all ranks: dropout follows them, whatever the ranks.
        best_score: the primary metric of the best epoch, signed so that more is better.
        best_step: steps done at its end.
        epochs_without_gain: since then.
        before: metrics before training, per split.
        finished: whether early stopping has ended the run.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    ranks: int = 1
    micro_batches: int = 1
    best_score: float | None = None
    best_step: int | None = None
    epochs_without_gain: int = 0
    before: dict[str, dict[str, float]] = field(default_factory=dict)
    finished: bool = False

    def end_epoch(self, score: float, patience: int | None) -> None:
        """Advance to the next epoch.

        Args:
            score: of the epoch, more is better.
            patience: epochs without a better one that end the run, or None.
        """
        if self.best_score is None or math.isnan(self.best_score) or score > self.best_score:
            self.best_score, self.best_step, self.epochs_without_gain = score, self.step, 0
        else:
            self.epochs_without_gain += 1
        self.epoch += 1
        self.step_in_epoch = 0
        self.finished = patience is not None and self.epochs_without_gain >= patience

    def forget_best(self) -> None:
        """Let the epochs to come be compared with each other alone: the best one's weights are gone."""
        self.best_score, self.best_step, self.epochs_without_gain = None, None, 0
