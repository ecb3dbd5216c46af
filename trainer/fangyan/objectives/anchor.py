"""Weights that are pulled back to where a run began, on the vectors that the optimizer steps.

The penalty on the distance is decoupled from the loss, as AdamW's weight decay is (Loshchilov & Hutter 2019,
arXiv 1711.05101): Adam would divide its gradient by that of the loss (Chen et al. 2020, RecAdam, arXiv
2004.12651). Before each step, a weight at learning rate ``r`` moves to the minimum of the penalty and its
squared distance to where it is (a proximal step), which overshoots at no strength::

    w <- w + (r s f) / (1 + r s f) (w_0 - w)        s strength, f importance, w_0 the weight at the beginning

ZeRO has these vectors in parts, one per rank: each pulls its own, whatever the stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fangyan.optimizers.states import flat_groups

# Elements that are pulled at once: what is computed on the way takes no memory to speak of.
_PIECE = 1 << 22


@dataclass(frozen=True)
class Anchor:
    """Where a vector was.

    Attributes:
        start: its elements at the beginning, (N,).
        importance: of each, (N,), 1 on average; None where all are alike.
    """

    start: Tensor
    importance: Tensor | None

    @torch.no_grad()
    def pull(self, vector: Tensor, strength: float) -> None:
        """Move a vector towards its start; ``strength`` has the learning rate in it."""
        flat, start = vector.view(-1), self.start.view(-1)
        for first in range(0, flat.numel(), _PIECE):
            span = slice(first, first + _PIECE)
            if self.importance is None:
                flat[span].lerp_(start[span], strength / (1.0 + strength))
                continue
            weight = self.importance.view(-1)[span].to(flat.dtype) * strength
            flat[span].lerp_(start[span], weight / (1.0 + weight))


def held_vectors(engine: Any, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the vectors that the optimizer steps, less those of weights that are new to the run."""
    return [vector for group, vector in flat_groups(engine, optimizer) if not group["is_new"]]


def hold(
    engine: Any,
    optimizer: torch.optim.Optimizer,
    strength: float,
    importances: list[Tensor] | None = None,
) -> None:
    """Pull weights back before each step of the optimizer from now on.

    Args:
        engine: of DeepSpeed.
        optimizer: inside it.
        strength: of the pull, per unit of learning rate.
        importances: for each of :func:`held_vectors`; by default all elements are alike.
    """
    vectors = held_vectors(engine, optimizer)
    anchors = {
        id(vector): Anchor(vector.detach().clone(), None if importances is None else importances[i])
        for i, vector in enumerate(vectors)
    }

    def pull(stepping: torch.optim.Optimizer, *_: Any) -> None:
        for group in stepping.param_groups:  # ZeRO steps one group at a time
            if not group["is_new"]:
                for vector in group["params"]:
                    anchors[id(vector)].pull(vector, group["lr"] * strength)

    optimizer.register_step_pre_hook(pull)
