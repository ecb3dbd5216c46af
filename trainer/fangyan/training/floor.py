"""Models that a guess is better than are said to be so."""

from __future__ import annotations

from collections.abc import Mapping

from fangyan.tasks.task import Metrics


def below_the_floor(
    floor: Mapping[str, Metrics],
    after: Mapping[str, Metrics],
    metric: str,
    greater_is_better: bool,
    is_scratch: bool = False,
) -> str | None:
    """Return a sentence on a model that is worse than a guess, or None.

    Args:
        floor: metrics of the guess, per split; see :meth:`fangyan.tasks.task.Task.floor`.
        after: of the model.
        metric: that says which of two is better.
        greater_is_better: of the metric.
        is_scratch: whether the model started from nothing.
    """
    sign = 1 if greater_is_better else -1
    other = "more data" if is_scratch else "another model, such as model.path: scratch for taggers"
    for split, guess in floor.items():
        found = after.get(split, {}).get(metric)
        if found is not None and sign * found < sign * guess[metric]:
            return (
                f"the model is worse than a guess: {metric.replace('_', ' ')} of {split} is {found:.2f}, of "
                f"the guess {guess[metric]:.2f}; expected more epochs, another optimizer.lr, or {other}"
            )
    return None
