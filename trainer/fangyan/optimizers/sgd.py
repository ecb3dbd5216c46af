"""SGD with momentum, by PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from fangyan.config import Fraction
from fangyan.optimizers.optimizer import OptimizerConfig

if TYPE_CHECKING:
    import torch


class SGD(OptimizerConfig):
    """SGD: 4 bytes of state per parameter."""

    name: Literal["sgd"] = "sgd"
    states_per_parameter: ClassVar[int] = 1

    momentum: Fraction = Field(0.9, description="Momentum.")

    @override
    def build(self, groups: list[dict[str, Any]], total_steps: int, on_cpu: bool) -> torch.optim.Optimizer:
        """Return ``torch.optim.SGD``; see :class:`OptimizerConfig`."""
        import torch

        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum)
