"""A model's last linear layer, which can compute its loss in place of logits: the seam for our kernel.

What a model does to its logits behind the head has to be part of that loss. It is found by trying: the head
returns chosen values, and the model's output shows what became of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from fangyan_kernels import linear_cross_entropy
from torch import Tensor, nn

from fangyan.data.tokenization import IGNORE_INDEX
from fangyan.models.structure import evaluating, head_name

Kernels = Literal["auto", "reference"]
# As ``problem_type`` of a model's configuration has it.
TargetLoss = Literal["multi_label_classification", "regression"]

# Far below any cap, where tanh is linear, and far above any; powers of two, a quotient by which is exact.
_SMALLEST, _LARGEST = 2.0**-20, 2.0**24
# 0.01, 0.1 and others are no 16-bit numbers: rounding to those would be seen.
_MAGNITUDES = (_SMALLEST, 0.01, 0.1, 1.0, 3.3, 10.1, 33.3, 100.1, 1e3, 7e4, _LARGEST)
# Of 23 values, a prime, each class gets another one at each token.
_GRID = (0.0, *_MAGNITUDES, *(-magnitude for magnitude in _MAGNITUDES))


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """What a model does to the outputs of its head.

    They become ``scale * z``, or ``softcap * tanh(scale * z / softcap)``.

    Attributes:
        scale: Cohere's ``logit_scale``, say; 1 where there is none.
        softcap: Gemma 2's ``final_logit_softcapping``, say, or None.
    """

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, values: Tensor) -> Tensor:
        """Return what becomes of the head's outputs."""
        scaled = self.scale * values
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)


@dataclass(frozen=True, slots=True)
class LossOptions:
    """How a :class:`LossHead` computes its loss.

    Attributes:
        labels: (R, W), int64, ``IGNORE_INDEX`` where nothing is learned.
        num_valid: labels that count; the host knows it before a GPU does.
        divisor: what the summed loss is divided by (divided later, every gradient would take one more pass).
        label_smoothing: in [0, 1).
        transform: from the head's outputs to the model's logits.
        class_weights: factor on the loss of each class, (C,), or None.
        targets: numbers to learn in place of classes, (..., C), where labels that count say that there are
            some; or None.
        target_loss: of these; see :func:`target_losses`.
    """

    labels: Tensor
    num_valid: int
    divisor: float
    label_smoothing: float = 0.0
    transform: LogitTransform = LogitTransform()
    class_weights: Tensor | None = None
    targets: Tensor | None = None
    target_loss: TargetLoss = "regression"


def target_losses(
    logits: Tensor, targets: Tensor, kind: TargetLoss, class_weights: Tensor | None = None
) -> Tensor:
    """Return the loss of each row as transformers has it, the mean over its outputs: (...,).

    Args:
        logits: (..., C).
        targets: (..., C), float32 or more.
        kind: ``multi_label_classification``, by binary cross-entropy, or ``regression``, by squared errors.
        class_weights: factor on the loss of a label that is there, (C,), or None.
    """
    if kind == "regression":
        return nn.functional.mse_loss(logits.to(targets.dtype), targets, reduction="none").mean(-1)
    losses = nn.functional.binary_cross_entropy_with_logits(
        logits.to(targets.dtype), targets, pos_weight=class_weights, reduction="none"
    )
    return losses.mean(-1)


class LossHead(nn.Linear):
    """A linear head that stays a plain one until it is told to compute something else.

    The loss runs inside the head's own forward, where ZeRO-3 has gathered its weight and will gather it again
    for the backward, and whatever the model computes before its head stays the model's.
    """

    def __init__(self, linear: nn.Linear, kernels: Kernels):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.kernels = kernels
        self._compute: Callable[[Tensor], Tensor] | None = None

    @contextmanager
    def computing(self, compute: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
        """Compute something else of the hidden states within this context.

        Yields:
            What each forward has returned. The hook that collects it comes after DeepSpeed's, so that the
            backward of a loss in it goes through them.
        """
        outputs: list[Tensor] = []
        handle = self.register_forward_hook(lambda _head, _arguments, output: outputs.append(output))
        self._compute = compute
        try:
            yield outputs
        finally:
            self._compute = None
            handle.remove()

    def loss(self, hidden: Tensor, options: LossOptions) -> Tensor:
        """Return the loss of hidden states, (), for use within :meth:`computing`.

        Networks side by side, (M, R, W, H), learn the labels each: the loss is the mean of theirs.
        """
        if options.targets is not None:
            logits = super().forward(hidden)
            losses = target_losses(logits, options.targets, options.target_loss, options.class_weights)
            return (losses * (options.labels != IGNORE_INDEX)).sum() / options.divisor
        labels = options.labels.expand(hidden.shape[:-1])
        networks = labels.numel() // max(1, options.labels.numel())
        return linear_cross_entropy(
            hidden,
            self.weight,
            labels,
            linear_bias=self.bias,
            weight=options.class_weights,
            reduction="mean",
            divisor=options.divisor * networks,
            max_valid=options.num_valid * networks,
            label_smoothing=options.label_smoothing,
            logit_scale=options.transform.scale,
            softcap=options.transform.softcap,
            impl=self.kernels,
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits, (..., C), or what it was told to compute."""
        return super().forward(hidden) if self._compute is None else self._compute(hidden)


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


def find_logit_transform(model: Any, head: LossHead) -> LogitTransform | None:
    """Return what a model does to the outputs of its head, by two forwards on a few sub-words.

    Args:
        model: around the head, whose weights are whole.
        head: of :func:`install_loss_head`.

    Returns:
        The transform; None if it is another function, or one that a loss in place of the logits does not pass
        through.
    """
    values: list[Tensor] = []

    def chosen_values(hidden: Tensor) -> Tensor:
        shape = (*hidden.shape[:-1], head.out_features)
        indices = torch.arange(math.prod(shape), device=hidden.device) % len(_GRID)
        values.append(torch.tensor(_GRID, device=hidden.device)[indices].view(shape))
        return values[-1].clone()  # which the model may overwrite

    width = max(2, -(-len(_GRID) // head.out_features))
    ids = torch.zeros(1, width, dtype=torch.int64, device=head.weight.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with evaluating(model):
        with head.computing(chosen_values):
            logits = model(**inputs).logits
        with head.computing(lambda hidden: hidden.new_zeros(())):
            try:
                model(**inputs)
            except (IndexError, RuntimeError, TypeError, ValueError):
                return None
    if len(values) != 1 or logits.shape != values[0].shape:
        return None
    return _fit(values[0].double(), logits.double())


def _fit(values: Tensor, logits: Tensor) -> LogitTransform | None:
    """Return the transform that takes all values to logits, within a few roundings of float32."""
    scale = float(logits[values == _SMALLEST][0]) / _SMALLEST
    if abs(scale - 1.0) < 1e-6:  # rounded by a cap
        scale = 1.0
    largest = float(logits[values == _LARGEST][0])
    is_capped = not math.isclose(largest, scale * _LARGEST, rel_tol=1e-5)
    transform = LogitTransform(scale, abs(largest) if is_capped else None)
    fits = math.isfinite(scale) and math.isfinite(largest) and largest != 0.0
    return transform if fits and torch.allclose(transform(values), logits, rtol=1e-5, atol=0.0) else None
