"""What a run has cost on the data sets of ``retain``, beside what it has gained."""

from __future__ import annotations

from collections.abc import Mapping

from fangyan.data.retained import RETAINED
from fangyan.tasks.task import Metrics


def forgetting(
    before: Mapping[str, Metrics],
    after: Mapping[str, Metrics],
    metric: str,
    greater_is_better: bool,
    unit: str,
) -> list[str]:
    """Return a sentence on each data set that was retained, and one on what was gained; none without any.

    Args:
        before: metrics per split before training.
        after: of the best checkpoint.
        metric: that says which of two models is better.
        greater_is_better: of the metric.
        unit: of all metrics, or "": perplexities, which are compared by their ratio.
    """
    retained = [split for split in after if split.startswith(RETAINED) and split in before]
    sentences = []
    for split in [*retained, *(name for name in ("dev", "test") if retained and name in before)]:
        old, new = before[split][metric], after[split][metric]
        change = (new - old if unit else 100.0 * (new / old - 1.0)) * (1 if greater_is_better else -1)
        how = f"{abs(change):.2f} {'points' if unit else '%'} {'better' if change > 0.0 else 'worse'}"
        if not abs(change) >= 0.005:  # or both are infinite
            how = "unchanged"
        name = f"{split.removeprefix(RETAINED)}: {metric.replace('_', ' ')}"
        sentences.append(f"{name} {old:.2f} before, {new:.2f} after: {how}")
    return sentences
