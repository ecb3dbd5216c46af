"""LoRA layers of PEFT computed by :func:`fangyan_kernels.lora_linear`.

Whatever else such a layer can do (several adapters, DoRA, merged weights) stays PEFT's.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from fangyan_kernels import lora_linear
from torch import Tensor, nn

from fangyan.models.structure import try_forward


def use_fused_lora(model: Any) -> int:
    """Route PEFT's plain LoRA layers through ``lora_linear``; return how many.

    Layers that take the same tensor one after another (query, key and value; gate and up) are computed by one
    call, in one pass over it and with one dropout mask. A forward finds them.
    """
    from peft.tuners import lora

    fused: dict[type[nn.Module], type[nn.Module]] = {lora.Linear: _fused(lora.Linear)}
    if hasattr(lora, "Linear4bit"):
        fused[lora.Linear4bit] = _fused(lora.Linear4bit)
    layers = [module for module in model.modules() if type(module) in fused]
    for layer in layers:
        layer.__class__ = fused[type(layer)]
    for group in _same_input(model, layers) if layers else []:
        shared: Any = SharedInput(group)
        for layer in group:
            layer.shared_input = shared
    return len(layers)


def _same_input(model: Any, layers: list[nn.Module]) -> list[list[nn.Module]]:
    """Return the groups of layers that take the same tensor, in the order of their calls."""
    calls: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, args: calls.append((layer, args[0])))
        for layer in layers
    ]
    try:
        try_forward(model)
    finally:
        for hook in hooks:
            hook.remove()
    num_calls = Counter(layer for layer, _ in calls)
    groups: list[list[nn.Module]] = []
    previous: Tensor | None = None
    for layer, x in calls:
        if x is previous:
            groups[-1].append(layer)
        else:
            groups.append([layer])
        previous = x
    return [group for group in groups if len(group) > 1 and all(num_calls[layer] == 1 for layer in group)]


class SharedInput:
    """LoRA layers that take the same tensor one after another: the first computes the outputs of all.

    Args:
        layers: in the order of their calls.
    """

    def __init__(self, layers: list[nn.Module]):
        self._layers = layers
        # The input, and the outputs that no layer has asked for yet.
        self._pending: tuple[Tensor, dict[nn.Module, Tensor]] | None = None

    def output(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        """Return a layer's output, or None where it has to compute its own."""
        if layer is self._layers[0]:
            outputs = self._compute(x)
            self._pending = None if outputs is None else (x, dict(zip(self._layers, outputs, strict=True)))
        # Read once: another thread may run the same model.
        pending = self._pending
        if pending is None or pending[0] is not x:
            return None
        output = pending[1].pop(layer, None)
        if not pending[1]:
            self._pending = None
        return output

    def _compute(self, x: Tensor) -> tuple[Tensor, ...] | None:
        """Return the outputs of all layers; None if one call cannot compute them."""
        layers = [arguments for layer in self._layers if (arguments := _arguments(layer)) is not None]
        if len(layers) < len(self._layers) or len({arguments["dropout"] for arguments in layers}) > 1:
            return None
        if any(hasattr(arguments["weight"], "ds_id") for arguments in layers):
            return None  # ZeRO-3 gathers a layer's weights when it is that layer's turn
        biases = [arguments["bias"] for arguments in layers]
        if any(bias is None for bias in biases) and any(bias is not None for bias in biases):
            return None
        return lora_linear(
            x,
            *([arguments[name] for arguments in layers] for name in ("weight", "lora_A", "lora_B")),
            bias=None if biases[0] is None else biases,
            scaling=[arguments["scaling"] for arguments in layers],
            dropout=layers[0]["dropout"],
        )


def _fused(layer: Any) -> Any:
    """Return a subclass of one of PEFT's LoRA layers whose forward is the op, where it is plain LoRA."""

    class Fused(layer):  # type: ignore[misc]  # PEFT is untyped
        shared_input: SharedInput | None = None

        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            arguments = None if args or kwargs else _arguments(self)
            if arguments is None:
                output: Tensor = super().forward(x, *args, **kwargs)
                return output
            shared = None if self.shared_input is None else self.shared_input.output(self, x)
            fused: Tensor = lora_linear(x, **arguments) if shared is None else shared
            return fused

    Fused.__name__ = Fused.__qualname__ = layer.__name__
    return Fused


def _arguments(layer: Any) -> dict[str, Any] | None:
    """Return what ``lora_linear`` takes of a layer; None if it is not plain LoRA at the moment."""
    name = _plain_adapter(layer)
    if name is None:
        return None
    # Weights are read from their modules, inside the engine's forward: ZeRO-3 gathers them so.
    base, dropout = layer.get_base_layer(), layer.lora_dropout[name]
    return {
        "weight": base.weight,
        "lora_A": layer.lora_A[name].weight,
        "lora_B": layer.lora_B[name].weight,
        "bias": base.bias,
        "scaling": layer.scaling[name],
        "dropout": dropout.p if layer.training and isinstance(dropout, nn.Dropout) else 0.0,
    }


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
