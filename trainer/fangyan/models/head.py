"""The seam for kernels: a model's last linear layer, which can give its loss in place of logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from fangyan_kernels import linear_cross_entropy
from torch import Tensor, nn

from fangyan.errors import UserError

Kernels = Literal["auto", "reference"]


class LossHead(nn.Linear):
    """A linear head that stays a plain one until it is given targets.

    Given targets, ``forward`` returns their summed loss over a divisor where the model expects logits
    (divided later, every gradient would take one more pass). The loss then runs inside the head's
    own forward, where ZeRO-3 has gathered its weight and will gather it again for the backward, and
    whatever the model computes before its head stays the model's.
    """

    def __init__(self, linear: nn.Linear, label_smoothing: float, kernels: Kernels):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.label_smoothing = label_smoothing
        self.kernels = kernels
        self._targets: Tensor | None = None
        self._divisor = 1.0
        self._max_valid: int | None = None
        self._softcap: float | None = None

    @contextmanager
    def computing_loss(
        self, targets: Tensor, divisor: float, max_valid: int | None = None, softcap: float | None = None
    ) -> Iterator[None]:
        """``max_valid``: how many targets count, where the caller knows it before a GPU does."""
        self._targets, self._divisor, self._max_valid = targets, divisor, max_valid
        self._softcap = softcap
        try:
            yield
        finally:
            self._targets = None

    def forward(self, hidden: Tensor) -> Tensor:
        if self._targets is None:
            return super().forward(hidden)
        # Prompt tuning puts tokens of its own, without targets, before every row.
        hidden = hidden[..., -self._targets.shape[-1] :, :]
        return linear_cross_entropy(
            hidden,
            self.weight,
            self._targets,
            linear_bias=self.bias,
            reduction="mean",
            divisor=self._divisor,
            max_valid=self._max_valid,
            label_smoothing=self.label_smoothing,
            softcap=self._softcap,
            impl=self.kernels,
        )


def head_name(model: nn.Module, classes: int) -> str:
    """Name of the model's last ``nn.Linear`` with ``classes`` outputs.

    Raises:
        UserError: if it has none.
    """
    for name, module in reversed(list(model.named_modules())):
        if isinstance(module, nn.Linear) and module.out_features == classes:
            return name
    raise UserError(f"model.path: {type(model).__name__} has no linear head with {classes} outputs")


def install_loss_head(model: nn.Module, classes: int, label_smoothing: float, kernels: Kernels) -> LossHead:
    """Has the model's head give its loss; its parameters are kept."""
    name = head_name(model, classes)
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    head = LossHead(linear, label_smoothing, kernels)
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, head)
    return head
