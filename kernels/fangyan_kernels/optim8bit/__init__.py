"""8-bit optimizers that run at full speed on the CPU, and are bitsandbytes' own on a GPU.

Constructors, overrides, states and checkpoints are those of bitsandbytes: a checkpoint goes from one device
to the other and back. Parameters on the CPU are stepped by ``csrc/adamw8bit.cpp``, 2.03 bytes of state each.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import bitsandbytes as bnb
import torch
from torch import Tensor

from fangyan_kernels.optim8bit import reference

IMPLEMENTATIONS = ("auto", "reference", "cpp")

# bitsandbytes says nothing of its types.
if TYPE_CHECKING:
    from torch.optim import Optimizer as _Base
else:
    _Base = object


class _SteppedHere(_Base):
    """Steps parameters on the CPU itself; goes before one of bitsandbytes' optimizers.

    Attributes:
        copies: tensors that get the parameter in bfloat16 with every step, by parameter; of its shape.
        num_skipped: elements that the last step skipped because their gradient was NaN or infinite (or its
            square not finite in float32). A skipped element keeps its value, its averages decay as for a
            gradient of 0, and the rest of its block is unaffected. On a GPU bitsandbytes resets its averages,
            and nothing is counted.
    """

    impl = "auto"
    optimizer_name: str

    def __init__(self, *arguments: Any, **settings: Any):
        impl = settings.pop("impl", "auto")
        if impl not in IMPLEMENTATIONS:
            raise ValueError(f"impl is {impl!r}, expected one of {', '.join(IMPLEMENTATIONS)}")
        super().__init__(*arguments, **settings)
        self.impl = impl
        self.copies: dict[Tensor, Tensor] = {}
        self.num_skipped = 0

    def step(self, closure: Any = None) -> Any:
        """One step of every parameter that has a gradient; gives the closure's loss, if there is one."""
        self.num_skipped = 0
        return super().step(closure)

    @torch.no_grad()
    def update_step(self, group: dict[str, Any], p: Tensor, gindex: int, pindex: int) -> None:
        """The step of one parameter, as bitsandbytes asks for it."""
        if p.device.type != "cpu" and self.impl != "reference":
            if self.impl == "cpp" or p in self.copies:
                raise ValueError(f"a parameter is on {p.device}, where impl='cpp' and copies do not run")
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
        step_: Any = torch.ops.fangyan.optimizer_step_
        if self.impl == "reference":
            step_ = reference.optimizer_step_
        self.num_skipped += step_(
            self.optimizer_name,
            p,
            p.grad.contiguous(),
            *(state.get(key) for key in ("state1", "state2", "absmax1", "absmax2", "qmap1", "qmap2")),
            self.copies.get(p),
            *(config["lr"], beta1, beta2, beta3, alpha, config["eps"], config["weight_decay"], state["step"]),
        )


def _schedule(config: dict[str, Any], beta1: float, beta3: float, step: int) -> tuple[float, float]:
    """AdEMAMix' alpha and beta3 at a step: both rise to their values (Pagliardini et al. 2024, section 3)."""
    alpha = config["alpha"]
    if config["t_alpha"]:
        alpha = min(step * alpha / config["t_alpha"], alpha)
    if config["t_beta3"]:
        share, log1, log3 = step / config["t_beta3"], math.log(beta1), math.log(beta3)
        beta3 = min(math.exp(log1 * log3 / ((1 - share) * log3 + share * log1)), beta3)
    return alpha, beta3


class AdamW8bit(_SteppedHere, bnb.optim.AdamW8bit):
    """``bitsandbytes.optim.AdamW8bit``, stepping on the CPU (Loshchilov & Hutter 2019, arXiv 1711.05101).

    Args:
        params, lr, betas, eps, weight_decay, min_8bit_size: as bitsandbytes has them; parameters smaller
            than ``min_8bit_size`` numbers, or told so by ``GlobalOptimManager.override_config``, have 32-bit
            states.
        impl: ``cpp``, ``reference`` (plain PyTorch, any device), or ``auto``: ``cpp`` on the CPU,
            bitsandbytes' own kernels elsewhere.

    Raises:
        ValueError: if an implementation cannot run where a parameter is.
    """


class Adam8bit(_SteppedHere, bnb.optim.Adam8bit):
    """``bitsandbytes.optim.Adam8bit`` likewise; its ``weight_decay`` is decoupled too, and 0."""


class Lion8bit(_SteppedHere, bnb.optim.Lion8bit):
    """``bitsandbytes.optim.Lion8bit`` likewise, 1 byte of state (Chen et al. 2023, arXiv 2302.06675)."""


class AdEMAMix8bit(_SteppedHere, bnb.optim.AdEMAMix8bit):
    """``bitsandbytes.optim.AdEMAMix8bit`` likewise, 3 bytes (Pagliardini et al. 2024, arXiv 2409.03137)."""
