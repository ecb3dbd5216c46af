"""Freezing by module type: embedding tables, and numbered encoder layers."""

from __future__ import annotations

from torch import nn

from fangyan.errors import UserError
from fangyan.recipe import Freeze, parse_layers


def freeze(model: nn.Module, settings: Freeze) -> int:
    """Stops the gradient of the chosen parameters; returns how many numbers that is.

    Raises:
        UserError: for a layer that the model does not have.
    """
    chosen: list[nn.Module] = []
    if settings.embeddings:
        chosen += [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if settings.layers is not None:
        layers = encoder_layers(model, "freeze.layers")
        for number in parse_layers(settings.layers):
            if number >= len(layers):
                raise UserError(
                    f"freeze.layers: layer {number}, but the model has layers 0-{len(layers) - 1}"
                )
            chosen.append(layers[number])
    parameters = {id(p): p for module in chosen for p in module.parameters()}
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    return sum(parameter.numel() for parameter in parameters.values())


def encoder_layers(model: nn.Module, field: str) -> nn.ModuleList:
    """The model's stack of layers: its longest list of modules.

    Raises:
        UserError: naming the recipe's field that asks for layers, if there is none.
    """
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not stacks:
        raise UserError(f"{field}: {type(model).__name__} has no stack of layers")
    return max(stacks, key=len)
