"""32-bit states where 8 bits would hurt, although ZeRO hands the optimizer flat vectors."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from fangyan.optimizers.optimizer import OptimizerConfig
from fangyan.optimizers.param_groups import FULL_PRECISION_GROUPS


def keep_full_precision_states(
    engine: Any, optimizer: torch.optim.Optimizer, config: OptimizerConfig
) -> None:
    """Keep 32-bit states of :data:`FULL_PRECISION_GROUPS`; called after ``deepspeed.initialize``.

    ZeRO hands the optimizer one flat vector per group, so that bitsandbytes' protection of small
    tensors and its overrides by parameter no longer apply: the override goes on the flat vector.
    """
    if not config.has_8bit_states:
        return
    import bitsandbytes as bnb

    manager = bnb.optim.GlobalOptimManager.get_instance()
    for name, parameter in flat_parameters(engine, optimizer):
        if name in FULL_PRECISION_GROUPS:
            manager.override_config(parameter, "optim_bits", 32)
            # bitsandbytes knows parameters by id() and forgets none: the next of this id would have it too.
            weakref.finalize(parameter, manager.pid2config.pop, id(parameter), None)


def assert_full_precision_states(
    engine: Any, optimizer: torch.optim.Optimizer, config: OptimizerConfig
) -> None:
    """Raise if, after a step, a state of :data:`FULL_PRECISION_GROUPS` is in 8 bits.

    Raises:
        RuntimeError: if an override was lost: a bug, not a configuration error.
    """
    if not config.has_8bit_states:
        return
    for name, parameter in flat_parameters(engine, optimizer):
        if name in FULL_PRECISION_GROUPS and parameter.numel():
            found = optimizer.state[parameter]["state1"].dtype
            if found != torch.float32:
                raise RuntimeError(f"optimizer group {name}: states are {found}, expected torch.float32")


def flat_parameters(engine: Any, optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    """Return the tensors that the optimizer really steps on, with the names of their groups."""
    return [(group["name"], vector) for group, vector in flat_groups(engine, optimizer)]


def flat_groups(engine: Any, optimizer: torch.optim.Optimizer) -> list[tuple[dict[str, Any], Tensor]]:
    """Return the tensors that the optimizer really steps on, with their groups."""
    wrapper = engine.optimizer
    if hasattr(wrapper, "fp32_partitioned_groups_flat"):  # ZeRO 3: one vector per sub-group
        group_of = wrapper.sub_group_to_group_id
        return [
            (optimizer.param_groups[group_of[i]], flat)
            for i, flat in enumerate(wrapper.fp32_partitioned_groups_flat)
        ]
    # Otherwise the wrapper, if any, has put its own tensors into the optimizer's groups.
    return [(group, parameter) for group in optimizer.param_groups for parameter in group["params"]]
