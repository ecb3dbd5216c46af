"""L2-SP: weights stay near those that the run began with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from fangyan.objectives.cross_entropy import LabelObjective
from fangyan.objectives.objective import Prepared

if TYPE_CHECKING:
    from fangyan.objectives.objective import Run

Strength = Annotated[float, Field(gt=0.0, le=1e9)]


class L2SP(LabelObjective):
    """Cross-entropy, with weights held near where the run began (L2-SP, Li et al. 2018, arXiv 1802.01483)."""

    name: Literal["l2sp"] = "l2sp"
    holds_weights: ClassVar[bool] = True
    bytes_per_parameter: ClassVar[int] = 4

    strength: Strength = Field(
        100.0,
        description="Of the pull towards the weights at the beginning: per step, the share of the distance "
        "that is taken back is about this times the learning rate.",
    )

    @override
    def start(self, run: Run) -> Prepared:
        """Hold the weights; see :mod:`fangyan.objectives.anchor`."""
        from fangyan.objectives.anchor import hold

        hold(run.engine, run.optimizer, self.strength)
        return Prepared()
