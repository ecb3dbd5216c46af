"""What follows a run epoch by epoch, and may end it."""

from __future__ import annotations

from typing import Protocol

from fangyan.tasks.task import Metrics


class OnEpoch(Protocol):
    """Follows a run, and may end it before its last epoch. Every rank calls it."""

    def __call__(self, epoch: int, dev: Metrics, /) -> bool:
        """Take an epoch's number, from 1, and its dev metrics; return on all ranks whether the run goes on.

        After a kill an epoch may come again, with the same metrics.
        """


def go_on(_epoch: int, _dev: Metrics, /) -> bool:
    """Let a run go on to its last epoch."""
    return True
