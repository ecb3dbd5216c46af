"""The interface of a method of adaptation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fangyan.config import Config

if TYPE_CHECKING:
    import torch

    from fangyan.models.loss_head import Kernels


class Adaptation(Config, ABC):
    """The recipe's ``adaptation``. Each method is a subclass with a ``name`` tag.

    Attributes:
        trains_base_weights: whether the model's own weights learn. Otherwise checkpoints and exports hold
            what was trained alone.
        supports_packing: whether sequences may share a row.
        reads_gradients: whether it works with gradients, which fp16 scales.
        supports_new_tokens: whether embeddings that are new to the model learn.
        largest_zero_stage: the highest stage of DeepSpeed's ZeRO that it works with.
    """

    name: str
    trains_base_weights: ClassVar[bool]
    supports_packing: ClassVar[bool] = True
    reads_gradients: ClassVar[bool] = False
    supports_new_tokens: ClassVar[bool] = False
    largest_zero_stage: ClassVar[int] = 3

    @property
    def base_quantization(self) -> Literal["nf4"] | None:
        """Return how frozen weights are packed, or None."""
        return None

    @property
    def added_tokens(self) -> int:
        """Return how many tokens it puts before every sequence, which take the places of sub-words."""
        return 0

    @abstractmethod
    def apply(
        self,
        model: Any,
        *,
        peft_task_type: str,
        new_head: str | None,
        total_steps: int,
        activation_dtype: torch.dtype,
        kernels: Kernels,
    ) -> Any:
        """Return the model with the parameters that learn: every other one is frozen.

        Args:
            model: of transformers, in any dtype, which becomes ``activation_dtype``.
            peft_task_type: PEFT's name of the task.
            new_head: name of a head that the task brings, which is trained whole; None where the model's own
                stays frozen.
            total_steps: optimizer steps of the run.
            activation_dtype: of the forward.
            kernels: ``reference`` leaves every layer to PEFT.

        Raises:
            UserError: if the method does not fit the model.
        """

    def before_optimizer_step(self, model: Any, step: int) -> None:
        """Act between the last backward and the optimizer, ``step`` counted from 0. Every rank calls it."""

    def after_optimizer_step(self, model: Any, step: int) -> None:
        """Act after the optimizer, ``step`` counted from 0. Every rank calls it."""

    def state_dict(self, model: Any) -> dict[str, Any]:  # noqa: ARG002
        """Return what a resumed run needs beside the model's parameters."""
        return {}

    def load_state_dict(self, model: Any, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
