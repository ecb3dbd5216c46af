"""AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), by PyTorch's fused step."""

from __future__ import annotations

from abc import ABC
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from fangyan.config import Betas
from fangyan.optimizers.optimizer import OptimizerConfig

if TYPE_CHECKING:
    import torch


class AdamConfig(OptimizerConfig, ABC):
    """Optimizers of Adam's kind."""

    betas: Betas = Field((0.9, 0.999), description="Decay of the two moving averages.")
    eps: Annotated[float, Field(ge=1e-30, le=1.0)] = Field(
        1e-8, description="Adam's term against division by zero."
    )


class AdamW(AdamConfig):
    """AdamW: 8 bytes of state per parameter."""

    name: Literal["adamw"] = "adamw"
    states_per_parameter: ClassVar[int] = 2

    @override
    def build(self, groups: list[dict[str, Any]], total_steps: int, on_cpu: bool) -> torch.optim.Optimizer:
        """Return ``torch.optim.AdamW``; see :class:`OptimizerConfig`."""
        import torch

        return torch.optim.AdamW(groups, self.lr, self.betas, self.eps, fused=True)
