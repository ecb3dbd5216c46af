"""A model's last linear layer, which can return its loss in place of logits: the seam for our kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from fangyan_kernels import linear_cross_entropy
from torch import Tensor, nn

from fangyan.models.structure import head_name

Kernels = Literal["auto", "reference"]


@dataclass(frozen=True, slots=True)
class LossOptions:
    """How a :class:`LossHead` computes its loss.

    Attributes:
        labels: (R, W), int64, ``IGNORE_INDEX`` where nothing is learned.
        num_valid: labels that count; the host knows it before a GPU does.
        divisor: what the summed loss is divided by (divided later, every gradient would take one more pass).
        label_smoothing: in [0, 1).
        softcap: of the logits, or None.
    """

    labels: Tensor
    num_valid: int
    divisor: float
    label_smoothing: float
    softcap: float | None


class LossHead(nn.Linear):
    """A linear head that stays a plain one until it is given labels.

    Given labels, ``forward`` returns their loss where the model expects logits. The loss then runs inside
    the head's own forward, where ZeRO-3 has gathered its weight and will gather it again for the backward,
    and whatever the model computes before its head stays the model's.
    """

    def __init__(self, linear: nn.Linear, kernels: Kernels):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.kernels = kernels
        self._options: LossOptions | None = None

    @contextmanager
    def computing_loss(self, options: LossOptions) -> Iterator[None]:
        """Return the loss from ``forward`` within this context."""
        self._options = options
        try:
            yield
        finally:
            self._options = None

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits, (..., C), or the loss, ()."""
        options = self._options
        if options is None:
            return super().forward(hidden)
        # Prompt tuning puts tokens of its own, without labels, before every row.
        hidden = hidden[..., -options.labels.shape[-1] :, :]
        return linear_cross_entropy(
            hidden,
            self.weight,
            options.labels,
            linear_bias=self.bias,
            reduction="mean",
            divisor=options.divisor,
            max_valid=options.num_valid,
            label_smoothing=options.label_smoothing,
            softcap=options.softcap,
            impl=self.kernels,
        )


def install_loss_head(model: nn.Module, outputs: int, kernels: Kernels) -> LossHead:
    """Replace the model's head by a :class:`LossHead` with its parameters.

    Args:
        model: a transformers model, or PEFT's around one.
        outputs: of its head.
        kernels: implementation of the loss.
    """
    name = head_name(model, outputs)
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    head = LossHead(linear, kernels)
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, head)
    return head
