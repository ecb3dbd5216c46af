"""Factors on the loss of each class, as recipes give them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import Field

from fangyan.errors import UserError
from fangyan.suggestions import did_you_mean

ClassWeights = dict[str, Annotated[float, Field(gt=0.0, le=1e6)]] | Literal["balanced"] | None


def weigh(given: ClassWeights, classes: Sequence[str], found: Iterable[str], noun: str) -> list[float] | None:
    """Return the factor on the loss of each class, (C,), or None where all are 1.

    Args:
        given: the recipe's ``task.class_weights``. ``balanced`` gives all classes the same total, as in
            scikit-learn's ``compute_class_weight`` (King & Zeng 2001); a class that is never found has 1.
        classes: of the head, in order.
        found: the class of every label of train.
        noun: what the classes are, for messages.

    Raises:
        UserError: for a class that there is not.
    """
    if given is None:
        return None
    if given == "balanced":
        counts = Counter(found)
        mean = counts.total() / max(len(counts), 1)
        return [mean / counts[name] if name in counts else 1.0 for name in classes]
    if unknown := sorted(given.keys() - set(classes)):
        raise UserError(
            f"task.class_weights: {unknown[0]!r} is not in {noun} of {len(classes)}, expected some of "
            f"{', '.join(classes[:8])}{', …' if len(classes) > 8 else ''}{did_you_mean(unknown[0], classes)}"
        )
    return [given.get(name, 1.0) for name in classes]
