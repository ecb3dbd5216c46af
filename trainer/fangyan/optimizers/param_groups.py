"""Parameter groups: what decays, what keeps 32-bit states, and the learning rate of each layer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from fangyan.errors import UserError
from fangyan.models.structure import encoder_layers
from fangyan.optimizers.optimizer import OptimizerConfig

# Groups whose optimizer states stay in 32 bits: few elements in norms and biases, and rows of an
# embedding that see a gradient once in a thousand steps (Dettmers et al. 2022, arXiv 2110.02861).
FULL_PRECISION_GROUPS = ("no_decay", "embeddings")


def parameter_groups(
    model: nn.Module, config: OptimizerConfig, new: Collection[int] = ()
) -> list[dict[str, Any]]:
    """Return the trainable parameters as groups: decay (matrices), embeddings, no_decay (norms, biases).

    With ``layer_decay`` there are three per layer: the learning rate falls from the head to the embeddings
    (Howard & Ruder 2018, arXiv 1801.06146; ELECTRA's recipe, Clark et al. 2020, arXiv 2003.10555).

    Args:
        model: whose parameters.
        config: of the optimizer.
        new: ``id`` of parameters that are to be in groups of their own, marked ``is_new``.

    Raises:
        UserError: if every parameter is frozen.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    depths = _depths(model) if config.layer_decay < 1.0 else {}
    members: dict[tuple[int, str, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            if id(parameter) in embeddings:
                kind = "embeddings"
            else:
                kind = "no_decay" if parameter.ndim < 2 else "decay"
            key = depths.get(id(parameter), 0), kind, id(parameter) in new
            members.setdefault(key, []).append(parameter)
    if not members:
        raise UserError("adaptation: every parameter is frozen, expected some left to train")
    return [
        {
            "name": kind,
            "is_new": is_new,
            "params": parameters,
            "lr": config.lr * config.layer_decay**depth,
            "weight_decay": 0.0 if kind == "no_decay" else config.weight_decay,
        }
        for (depth, kind, is_new), parameters in sorted(members.items(), key=_in_order)
    ]


def _in_order(item: tuple[tuple[int, str, bool], list[nn.Parameter]]) -> tuple[int, int, bool]:
    depth, kind, is_new = item[0]
    return depth, ("embeddings", "decay", "no_decay").index(kind), is_new


def _depths(model: nn.Module) -> dict[int, int]:
    """Return how far each parameter lies below the head: 0, 1 for the last layer, most for the embeddings."""
    layers = encoder_layers(model, "optimizer.layer_decay")
    inside = {id(p): len(layers) - i for i, layer in enumerate(layers) for p in layer.parameters()}
    depths: dict[int, int] = {}
    depth = len(layers) + 1  # until the first layer: a model lists its modules from the input up
    for parameter in model.parameters():
        if id(parameter) in inside:
            depth = 0  # whatever follows outside the layers is the head's
        depths[id(parameter)] = inside.get(id(parameter), depth)
    return depths
