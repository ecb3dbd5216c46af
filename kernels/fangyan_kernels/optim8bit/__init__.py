"""8-bit optimizers that run at full speed on the CPU, and are bitsandbytes' own on a GPU.

Constructors, overrides, states and checkpoints are those of bitsandbytes: a checkpoint moves from one device
to the other and back. Parameters on the CPU are stepped by ``csrc/optim8bit.cpp``, 2.03 bytes of state each.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from fangyan_kernels.optim8bit import reference
from fangyan_kernels.optional import import_bitsandbytes

__all__ = ["AdEMAMix8bit", "Adam8bit", "AdamW8bit", "Lion8bit"]

Implementation = Literal["auto", "reference", "cpp"]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)

# bitsandbytes has no types: its optimizers are PyTorch's to the mixin below.
if TYPE_CHECKING:
    import bitsandbytes as bnb
    from torch.optim import Optimizer as _Base
else:
    bnb = import_bitsandbytes("an 8-bit optimizer")
    _Base = object


class _CPUStepMixin(_Base):
    """Steps parameters on the CPU by this package; stands before one of bitsandbytes' optimizers.

    Attributes:
        num_skipped: elements that the last step skipped because their gradient was NaN or infinite (or its
            square not finite in float32). A skipped element keeps its value, its averages decay as for a
            gradient of 0, and the rest of its block is unaffected. On a GPU bitsandbytes resets its averages,
            and nothing is counted.
    """

    impl: str = "auto"
    optimizer_name: str

    def __init__(self, *arguments: Any, **settings: Any):
        impl = settings.pop("impl", "auto")
        if impl not in IMPLEMENTATIONS:
            raise ValueError(f"impl is {impl!r}, expected one of {', '.join(IMPLEMENTATIONS)}")
        super().__init__(*arguments, **settings)
        self.impl = impl
        self.num_skipped = 0

    def step(self, closure: Any = None) -> Any:
        """Step every parameter that has a gradient; return the closure's loss, if there is one."""
        self.num_skipped = 0
        return super().step(closure)

    @torch.no_grad()
    def update_step(self, group: dict[str, Any], p: Tensor, gindex: int, pindex: int) -> None:
        """Step one parameter; bitsandbytes calls this."""
        if p.device.type != "cpu" and self.impl != "reference":
            if self.impl == "cpp":
                raise ValueError(f"impl='cpp' takes parameters on cpu, found one on {p.device}")
            super().update_step(group, p, gindex, pindex)  # type: ignore[misc]
            return
        p.data = p.data.contiguous()
        state, config = self.state[p], self.get_config(gindex, pindex, group)  # type: ignore[attr-defined]
        for key in ("state1", "state2"):
            if key in state:
                state[key] = state[key].contiguous()  # made like the parameter, whose layout was another
        state["step"] += 1
        beta1, beta2, *rest = config["betas"]
        alpha, beta3 = _schedule(config, beta1, rest[0], state["step"]) if rest else (0.0, 0.0)
        assert p.grad is not None
        optimizer_step_: Any = torch.ops.fangyan.optimizer_step_
        if self.impl == "reference":
            optimizer_step_ = reference.optimizer_step_
        self.num_skipped += optimizer_step_(
            self.optimizer_name,
            p,
            p.grad.contiguous(),
            *(state.get(key) for key in ("state1", "state2", "absmax1", "absmax2", "qmap1", "qmap2")),
            None,  # the bfloat16 weight, which the trainer's own step of a bfloat16 model passes
            *(config["lr"], beta1, beta2, beta3, alpha, config["eps"], config["weight_decay"], state["step"]),
        )


def _schedule(config: dict[str, Any], beta1: float, beta3: float, step: int) -> tuple[float, float]:
    """Return AdEMAMix' alpha and beta3 at a step: both rise (Pagliardini et al. 2024, section 3)."""
    alpha = config["alpha"]
    if config["t_alpha"]:
        alpha = min(step * alpha / config["t_alpha"], alpha)
    if config["t_beta3"]:
        progress, log1, log3 = step / config["t_beta3"], math.log(beta1), math.log(beta3)
        beta3 = min(math.exp(log1 * log3 / ((1 - progress) * log3 + progress * log1)), beta3)
    return alpha, beta3


class AdamW8bit(_CPUStepMixin, bnb.optim.AdamW8bit):  # type: ignore[misc]  # bitsandbytes has no types
    """``bitsandbytes.optim.AdamW8bit``, stepping on the CPU (Loshchilov & Hutter 2019, arXiv 1711.05101).

    Takes the arguments of ``bitsandbytes.optim.AdamW8bit``. Parameters of fewer than ``min_8bit_size``
    elements, and those that ``GlobalOptimManager.override_config`` names, have 32-bit states.

    Args:
        *arguments: as bitsandbytes has them, by position.
        **settings: as bitsandbytes has them, by name, and ``impl``: ``cpp``, ``reference`` (plain PyTorch,
            any device), or ``auto``, which is ``cpp`` on the CPU and bitsandbytes' own kernels elsewhere.

    Raises:
        ValueError: if an implementation cannot run where a parameter is.
    """


class Adam8bit(_CPUStepMixin, bnb.optim.Adam8bit):  # type: ignore[misc]
    """``bitsandbytes.optim.Adam8bit`` likewise; its ``weight_decay`` is decoupled too, and 0 by default."""


class Lion8bit(_CPUStepMixin, bnb.optim.Lion8bit):  # type: ignore[misc]
    """``bitsandbytes.optim.Lion8bit`` likewise, 1 byte of state (Chen et al. 2023, arXiv 2302.06675)."""


class AdEMAMix8bit(_CPUStepMixin, bnb.optim.AdEMAMix8bit):  # type: ignore[misc]
    """``bitsandbytes.optim.AdEMAMix8bit`` likewise, 3 bytes (Pagliardini et al. 2024, arXiv 2409.03137)."""
