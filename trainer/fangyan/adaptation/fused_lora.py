"""LoRA layers of PEFT computed by :func:`fangyan_kernels.lora_linear`.

Whatever else such a layer can do (several adapters, DoRA, merged weights) stays PEFT's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from fangyan_kernels import lora_linear
from torch import Tensor, nn


def use_fused_lora(model: nn.Module) -> int:
    """Route PEFT's plain LoRA layers through ``lora_linear``; return how many."""
    from peft.tuners import lora

    fused: dict[type[nn.Module], type[nn.Module]] = {lora.Linear: _fused(lora.Linear)}
    if hasattr(lora, "Linear4bit"):
        fused[lora.Linear4bit] = _fused(lora.Linear4bit)
    count = 0
    for module in model.modules():
        if type(module) in fused:
            module.__class__ = fused[type(module)]
            count += 1
    return count


def _fused(layer: Any) -> Any:
    """Return a subclass of one of PEFT's LoRA layers whose forward is the op, where it is plain LoRA."""

    class Fused(layer):  # type: ignore[misc]  # PEFT is untyped
        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            name = _plain_adapter(self)
            if name is None or args or kwargs:
                output: Tensor = super().forward(x, *args, **kwargs)
                return output
            base = self.get_base_layer()
            dropout = self.lora_dropout[name]
            # Weights are read from their modules, inside the engine's forward: ZeRO-3 gathers them so.
            fused: Tensor = lora_linear(
                x,
                base.weight,
                self.lora_A[name].weight,
                self.lora_B[name].weight,
                bias=base.bias,
                scaling=self.scaling[name],
                dropout=dropout.p if self.training and isinstance(dropout, nn.Dropout) else 0.0,
            )
            return fused

    Fused.__name__ = Fused.__qualname__ = layer.__name__
    return Fused


def _plain_adapter(layer: Any) -> str | None:
    """Return the one active adapter of a layer that does nothing but LoRA, else None."""
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.disable_adapters or layer.merged or len(active) != 1:
        return None
    name: str = active[0]
    special = name in layer.lora_variant or layer.lora_bias[name] or layer.fan_in_fan_out
    return None if special else name


def assert_adapters_updated(model: nn.Module) -> None:
    """Raise if no LoRA B has left the zero that it starts from. Collective.

    Gradient checkpointing trains nothing, silently, where no input of a checkpointed layer has a gradient.

    Raises:
        RuntimeError: if all are still zero: a bug, not a configuration error.
    """
    adapters = [p for name, p in model.named_parameters() if "lora_B" in name and p.requires_grad]
    if not adapters:
        return
    # ZeRO-3 leaves a rank its shard of a parameter.
    shards = [getattr(p, "ds_tensor", p).detach() for p in adapters]
    updated = torch.stack([shard.any() for shard in shards]).any().float()
    dist.all_reduce(updated, op=dist.ReduceOp.MAX)
    if not updated:
        raise RuntimeError("no adapter was updated by the first steps: their gradients do not arrive")
