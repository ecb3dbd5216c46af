"""Optimizers with 8-bit states (Dettmers et al. 2022, arXiv 2110.02861).

On a GPU they are bitsandbytes', on the CPU and offloaded ours, in one format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from fangyan.config import Betas, Fraction
from fangyan.optimizers.adamw import AdamConfig
from fangyan.optimizers.optimizer import OptimizerConfig

if TYPE_CHECKING:
    import torch


class AdamW8bit(AdamConfig):
    """AdamW: 2 bytes of state per parameter."""

    name: Literal["adamw8bit"] = "adamw8bit"
    states_per_parameter: ClassVar[int] = 2
    has_8bit_states: ClassVar[bool] = True

    @override
    def build(self, groups: list[dict[str, Any]], total_steps: int, on_cpu: bool) -> torch.optim.Optimizer:
        """Return the optimizer; see :class:`OptimizerConfig`."""
        import fangyan_kernels  # its 8-bit optimizers take seconds to import

        return fangyan_kernels.AdamW8bit(groups, self.lr, self.betas, self.eps)


class PagedAdamW8bit(AdamConfig):
    """AdamW whose 2 bytes of state per parameter move out of a full GPU."""

    name: Literal["paged_adamw8bit"] = "paged_adamw8bit"
    states_per_parameter: ClassVar[int] = 2
    has_8bit_states: ClassVar[bool] = True

    @override
    def build(self, groups: list[dict[str, Any]], total_steps: int, on_cpu: bool) -> torch.optim.Optimizer:
        """Return the optimizer, on the CPU a plain one: nothing can be paged there."""
        import fangyan_kernels

        if on_cpu:
            return fangyan_kernels.AdamW8bit(groups, self.lr, self.betas, self.eps)
        import bitsandbytes as bnb

        optimizer: torch.optim.Optimizer = bnb.optim.PagedAdamW8bit(groups, self.lr, self.betas, self.eps)
        return optimizer


class Lion8bit(OptimizerConfig):
    """Lion (Chen et al. 2023, arXiv 2302.06675): 1 byte of state per parameter."""

    name: Literal["lion8bit"] = "lion8bit"
    states_per_parameter: ClassVar[int] = 1
    has_8bit_states: ClassVar[bool] = True

    betas: Betas = Field((0.9, 0.99), description="Weight of the average in a step, and its decay.")

    @override
    def build(self, groups: list[dict[str, Any]], total_steps: int, on_cpu: bool) -> torch.optim.Optimizer:
        """Return the optimizer; see :class:`OptimizerConfig`."""
        import fangyan_kernels

        return fangyan_kernels.Lion8bit(groups, self.lr, self.betas)


class AdEMAMix8bit(AdamConfig):
    """AdEMAMix (Pagliardini et al. 2024, arXiv 2409.03137): 3 bytes of state per parameter."""

    name: Literal["ademamix8bit"] = "ademamix8bit"
    states_per_parameter: ClassVar[int] = 3
    has_8bit_states: ClassVar[bool] = True

    beta3: Fraction = Field(0.9999, description="Decay of the slow average; it rises to this over the run.")
    alpha: Annotated[float, Field(ge=0.0, le=1e6)] = Field(
        5.0, description="Weight of the slow average; it rises to this over the run."
    )

    @override
    def build(self, groups: list[dict[str, Any]], total_steps: int, on_cpu: bool) -> torch.optim.Optimizer:
        """Return the optimizer, whose slow average comes in over the run, as its authors have it."""
        import fangyan_kernels

        return fangyan_kernels.AdEMAMix8bit(
            groups,
            self.lr,
            (*self.betas, self.beta3),
            self.alpha,
            t_alpha=total_steps,
            t_beta3=total_steps,
            eps=self.eps,
        )
