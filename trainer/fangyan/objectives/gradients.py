"""The gradients that an engine's steps have, without a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

# What a step counts in DeepSpeed's engine.
_COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps")


@contextmanager
def catching_gradients(
    engine: Any, optimizer: torch.optim.Optimizer, catch: Callable[[Tensor, Tensor], None]
) -> Iterator[None]:
    """Hand over gradients in place of stepping, in every step of the engine within this context.

    They are whole: summed over micro-batches and ranks, unscaled, not clipped. Weights, states, schedule and
    counters stay as they are, whatever the stage of ZeRO.

    Args:
        engine: of DeepSpeed.
        optimizer: inside it.
        catch: called with each vector that the optimizer would step, and its gradient.
    """

    def step(*_: Any, **__: Any) -> None:
        for group in optimizer.param_groups:
            for vector in group["params"]:
                if vector.grad is not None:
                    catch(vector, vector.grad)

    wrapper = engine.optimizer
    kept = {name: getattr(engine, name) for name in _COUNTERS}
    # An optimizer with a hook is stepped by its own step at every precision; see half_precision_step.
    hook = optimizer.register_step_pre_hook(lambda *_: None)
    with ExitStack() as changes:
        changes.callback(hook.remove)
        changes.enter_context(_attribute(optimizer, "step", step))
        changes.enter_context(_attribute(engine, "lr_scheduler", None))
        changes.enter_context(_attribute(engine._config, "gradient_clipping", 0.0))
        if hasattr(wrapper, "clip_grad"):
            changes.enter_context(_attribute(wrapper, "clip_grad", 0.0))
        if hasattr(wrapper, "_lazy_init_hp_params_optimizer_state"):
            # After the first step it links the optimizer's states, of which there are none yet.
            changes.enter_context(_attribute(wrapper, "_lazy_init_hp_params_optimizer_state", lambda: None))
        yield
    for name, value in kept.items():
        setattr(engine, name, value)


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an object's attribute another value within this context."""
    is_own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
