"""Optimizers of a recipe, their parameter groups, and 32-bit states where 8 bits would hurt."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from fangyan.adapt.freeze import encoder_layers
from fangyan.errors import UserError
from fangyan.recipe import Optimizer

# Groups whose optimizer states stay in 32 bits: few numbers in norms and biases, and rows of an
# embedding that see a gradient once in a thousand steps (Dettmers et al. 2022, arXiv 2110.02861).
FULL_PRECISION_GROUPS = ("vectors", "embeddings")


def parameter_groups(model: nn.Module, settings: Optimizer) -> list[dict[str, Any]]:
    """Trainable parameters as matrices, embeddings and vectors (norms and biases: no decay).

    With ``layer_decay``, each of a layer's own: the rate falls from the head down to the embeddings
    (Howard & Ruder 2018, arXiv 1801.06146; ELECTRA's recipe, Clark et al. 2020, arXiv 2003.10555).
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    depths = _depths(model) if settings.layer_decay < 1.0 else {}
    members: dict[tuple[int, str], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            kind = (
                "embeddings"
                if id(parameter) in embeddings
                else "vectors"
                if parameter.ndim < 2
                else "matrices"
            )
            members.setdefault((depths.get(id(parameter), 0), kind), []).append(parameter)
    if not members:
        raise UserError("freeze: every parameter is frozen, expected some left to train")
    return [
        {
            "name": kind,
            "params": parameters,
            "lr": settings.lr * settings.layer_decay**depth,
            "weight_decay": 0.0 if kind == "vectors" else settings.weight_decay,
        }
        for (depth, kind), parameters in sorted(members.items(), key=lambda item: item[0])
    ]


def _depths(model: nn.Module) -> dict[int, int]:
    """How far each parameter lies below the head: 0, 1 for the last layer, most for the embeddings."""
    layers = encoder_layers(model, "optimizer.layer_decay")
    inside = {id(p): len(layers) - i for i, layer in enumerate(layers) for p in layer.parameters()}
    depths: dict[int, int] = {}
    depth = len(layers) + 1  # until the first layer: a model lists its modules from the input up
    for parameter in model.parameters():
        if id(parameter) in inside:
            depth = 0  # whatever follows outside the layers is the head's
        depths[id(parameter)] = inside.get(id(parameter), depth)
    return depths


def build_optimizer(
    groups: list[dict[str, Any]], settings: Optimizer, total_steps: int, on_cpu: bool
) -> torch.optim.Optimizer:
    """The recipe's optimizer over the groups.

    Args:
        total_steps: of the run, over which AdEMAMix' slow average comes in, as its authors have it.
        on_cpu: whether parameters are stepped on the CPU, where nothing can be paged.
    """
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
    betas = settings.betas or ((0.9, 0.99) if settings.name == "lion8bit" else (0.9, 0.999))
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, settings.lr, betas, settings.eps, fused=True)
    import fangyan_kernels  # its 8-bit optimizers take seconds to import: only who asks for one pays

    if settings.name == "lion8bit":
        return fangyan_kernels.Lion8bit(groups, settings.lr, betas)
    if settings.name == "ademamix8bit":
        return fangyan_kernels.AdEMAMix8bit(
            groups,
            settings.lr,
            (*betas, settings.beta3),
            settings.alpha,
            t_alpha=total_steps,
            t_beta3=total_steps,
            eps=settings.eps,
        )
    if settings.name == "paged_adamw8bit" and not on_cpu:
        import bitsandbytes as bnb

        return bnb.optim.PagedAdamW8bit(groups, settings.lr, betas, settings.eps)
    return fangyan_kernels.AdamW8bit(groups, settings.lr, betas, settings.eps)


def keep_full_precision_states(engine: Any, optimizer: torch.optim.Optimizer) -> None:
    """Gives :data:`FULL_PRECISION_GROUPS` 32-bit states, after ``deepspeed.initialize``.

    ZeRO hands the optimizer one flat vector a group, so that bitsandbytes' protection of small
    tensors and its overrides by parameter no longer apply: the override goes on the flat vector.
    """
    if not _has_8bit_states(optimizer):
        return
    import bitsandbytes as bnb

    manager = bnb.optim.GlobalOptimManager.get_instance()
    for name, parameter in flat_parameters(engine, optimizer):
        if name in FULL_PRECISION_GROUPS:
            manager.override_config(parameter, "optim_bits", 32)
            # bitsandbytes knows parameters by id() and forgets none: the next of this id would have it too.
            weakref.finalize(parameter, manager.pid2config.pop, id(parameter), None)


def check_states(engine: Any, optimizer: torch.optim.Optimizer) -> None:
    """After a step: the 8-bit optimizer's states have the bits that they should.

    Raises:
        RuntimeError: if an override was lost, which no recipe can mend.
    """
    if not _has_8bit_states(optimizer):
        return
    for name, parameter in flat_parameters(engine, optimizer):
        if name in FULL_PRECISION_GROUPS and parameter.numel():
            found = optimizer.state[parameter]["state1"].dtype
            if found != torch.float32:
                raise RuntimeError(f"optimizer group {name}: states are {found}, expected torch.float32")


def _has_8bit_states(optimizer: torch.optim.Optimizer) -> bool:
    return type(optimizer).__name__.endswith("8bit")


def flat_parameters(engine: Any, optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    """The tensors that the optimizer really steps on, with the names of their groups."""
    wrapper = engine.optimizer
    if hasattr(wrapper, "fp32_partitioned_groups_flat"):  # ZeRO 3: one vector a sub-group
        group_of = wrapper.sub_group_to_group_id
        return [
            (optimizer.param_groups[group_of[i]]["name"], flat)
            for i, flat in enumerate(wrapper.fp32_partitioned_groups_flat)
        ]
    # Otherwise the wrapper, if any, has put its own tensors into the optimizer's groups.
    return [(group["name"], parameter) for group in optimizer.param_groups for parameter in group["params"]]
