"""The interface of an optimizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from fangyan.config import Config

if TYPE_CHECKING:
    import torch


class OptimizerConfig(Config, ABC):
    """The recipe's ``optimizer``. Each is a subclass with a ``name`` tag.

    Attributes:
        states_per_parameter: values that it keeps for each parameter.
        has_8bit_states: whether it keeps them in 8 bits, except those of embeddings, norms and biases.
    """

    name: str
    states_per_parameter: ClassVar[int]
    has_8bit_states: ClassVar[bool] = False

    lr: Annotated[float, Field(gt=0.0, le=1e3)] = Field(1e-4, description="Peak learning rate.")
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0,
        description="Factor on the learning rate per layer below the head; the embeddings' is the smallest.",
    )
    weight_decay: Annotated[float, Field(ge=0.0, le=1e3)] = Field(
        0.01, description="Weight decay; off for norms and biases."
    )

    @abstractmethod
    def build(self, groups: list[dict[str, Any]], total_steps: int, on_cpu: bool) -> torch.optim.Optimizer:
        """Return the optimizer.

        Args:
            groups: see :func:`fangyan.optimizers.param_groups.parameter_groups`.
            total_steps: optimizer steps of the run, for optimizers with a schedule of their own.
            on_cpu: whether parameters are stepped on the CPU.
        """
