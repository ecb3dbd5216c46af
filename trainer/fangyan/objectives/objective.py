"""The interface of an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from fangyan.config import Config

if TYPE_CHECKING:
    from torch import Tensor

    from fangyan.data.packing import Batch
    from fangyan.models.packed import PackedModel


class Objective(Config, ABC):
    """The recipe's ``objective``. Each is a subclass with a ``name`` tag."""

    name: str

    @property
    def smooths_labels(self) -> bool:
        """Return whether some of the target distribution is spread over all classes."""
        return False

    @abstractmethod
    def loss(self, model: PackedModel, batch: Batch, divisor: float) -> Tensor:
        """Return the loss of a micro-batch, ().

        Runs inside the engine's forward, where ZeRO-3 gathers weights. Evaluation does not use it: metrics
        are the task's.

        Args:
            model: in training mode.
            batch: on the model's device; it may be empty, and the loss must reach the head even so.
            divisor: labels of all ranks and gradient accumulation steps, by which a sum over this batch's
                is to be divided (and by what DeepSpeed will divide again).
        """
