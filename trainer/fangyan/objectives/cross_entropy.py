"""Cross-entropy of the labels, by our fused head."""

from __future__ import annotations

from abc import ABC
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from typing_extensions import override

from fangyan.config import Fraction
from fangyan.objectives.objective import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from fangyan.data.packing import Batch
    from fangyan.models.packed import PackedModel


class LabelObjective(Objective, ABC):
    """Cross-entropy of the labels, whatever else an objective does."""

    label_smoothing: Fraction = Field(
        0.0, description="Fraction of the target distribution spread over all classes, in training alone."
    )

    @property
    @override
    def smooths_labels(self) -> bool:
        """Return the recipe's choice."""
        return self.label_smoothing > 0.0

    @override
    def loss(self, model: PackedModel, batch: Batch, divisor: float) -> Tensor:
        """Return the loss; see :class:`Objective`."""
        return model.loss(batch, divisor, self.label_smoothing)


class CrossEntropy(LabelObjective):
    """Cross-entropy of the labels, with label smoothing (Szegedy et al. 2015, arXiv 1512.00567)."""

    name: Literal["cross_entropy"] = "cross_entropy"
