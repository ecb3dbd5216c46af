"""A transformers model that classifies whole sequences, on packed batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from fangyan.data.packing import Batch, split_by_length, word_segments
from fangyan.data.tokenization import IGNORE_INDEX, LabelPlace, TokenizedSequence, whole_text
from fangyan.models.loss_head import Kernels, LogitTransform, LossOptions, target_losses
from fangyan.models.packed import Layout, PackedModel, averaged
from fangyan.models.selection import pooled, positions
from fangyan.models.structure import is_causal, num_outputs


def native_pooling(model: Any) -> LabelPlace:
    """Return what stands for a sequence in a model of transformers: a sub-word, or the mean of all."""
    chosen = getattr(model.config, "classifier_pooling", None)
    if chosen is not None:
        return "mean" if chosen == "mean" else "first"
    return "last" if is_causal(model) else "first"


class PooledModel(PackedModel):
    """Runs a model that classifies sequences; see :class:`PackedModel`.

    A model reads one vector of each row, by its head or by layers before it. Here these are given the
    vectors of a batch's sequences, wherever in the rows they are. Without packing the model pools by itself,
    as it does in plain transformers, which is what packed layouts are compared with.

    Args:
        model: a transformers model for sequence classification, or PEFT's around one.
        layout: see :meth:`PackedModel.use_layout`.
        kernels: implementation of the head's loss.
        pooling: what stands for a sequence.

    Attributes:
        is_native: whether the class of transformers pools in the same way.
    """

    def __init__(self, model: Any, layout: Layout, kernels: Kernels = "auto", pooling: LabelPlace = "first"):
        super().__init__(model, layout, kernels)
        self.pooling = pooling
        self.is_native = pooling == native_pooling(self.base)

    loss_name: ClassVar[str] = "loss of its kind"

    @override
    def _find_logit_transform(self) -> LogitTransform:
        """Return none: models scale and cap the logits of a vocabulary alone."""
        return LogitTransform()

    @override
    def logits(self, batch: Batch) -> Tensor:
        """Return the logits of each sequence of a batch, (S, C); of a batch without any, one row."""
        return self._by_length(batch, self._logits)

    @override
    def head_inputs(self, batch: Batch) -> Tensor:
        """Return what the head reads of each sequence of a batch, (S, H); of a batch without any, one row."""
        return self._by_length(batch, self._head_inputs)

    @override
    def _by_length(self, batch: Batch, compute: Callable[[Batch], Tensor]) -> Tensor:
        if self.layout != "unpadded":
            return compute(batch)
        parts = split_by_length(batch)
        found = torch.cat([compute(part) for _, part in parts])
        return found[torch.tensor([row for rows, _ in parts for row in rows], device=found.device).argsort()]

    @override
    def at_labels(self, batch: Batch, compute: Callable[[Tensor, slice], Tensor]) -> Tensor:
        """Return what a function makes of the logits of each sequence, (S, ...)."""
        count = len(batch.sequences)
        return compute(self.logits(batch)[:count].float(), slice(0, count))

    @override
    def split_logits(self, logits: Tensor, batch: Batch) -> list[Tensor]:
        return [logits[i : i + 1] for i in range(len(batch.sequences))]

    @override
    def expected_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss that transformers computes of logits, (S, C), summed."""
        if batch.targets is not None:
            return target_losses(logits, batch.targets.double(), self.base.config.problem_type).sum()
        labels = batch.labels.flatten()[positions(batch, pooled(batch.sequences))]
        return nn.functional.cross_entropy(logits, labels, reduction="sum")

    @override
    def random_labels(self, sequence: TokenizedSequence, generator: torch.Generator) -> TokenizedSequence:
        alignment = whole_text(len(sequence.input_ids), self.pooling)
        labels = [IGNORE_INDEX] * len(sequence.input_ids)
        outputs = num_outputs(self.base)
        targets: list[float] = []
        if self.base.config.problem_type == "single_label_classification":
            label = int(torch.randint(outputs, (), generator=generator))
        else:
            label, targets = 0, torch.randint(2, (outputs,), generator=generator).float().tolist()
        labels[alignment.places[0]] = label
        return replace(sequence, labels=labels, alignment=alignment, targets=targets)

    @override
    def _logits(self, batch: Batch) -> Tensor:
        if self._pools_by_itself:
            logits: Tensor = self._run(batch).logits
            return logits
        outputs: list[Tensor] = []
        handle = self.head.register_forward_hook(lambda _head, _inputs, output: outputs.append(output))
        try:
            with self._reading(batch):
                self._run(batch)
        finally:
            handle.remove()
        (found,) = outputs
        return self._pooled(found, batch) if self._hidden.head_reads_rows else found.flatten(0, -2)

    @override
    def _head_inputs(self, batch: Batch) -> Tensor:
        with nullcontext() if self._pools_by_itself else self._reading(batch):
            hidden = self._taken_by_head(batch)
        return self._pooled(hidden, batch) if self._hidden.head_reads_rows else hidden.flatten(0, -2)

    @override
    def _loss(self, batch: Batch, divisor: float, label_smoothing: float) -> Tensor:
        options = LossOptions(
            batch.labels.flatten()[positions(batch, pooled(batch.sequences))],
            batch.num_valid,
            divisor,
            label_smoothing,
            class_weights=batch.class_weights,
            targets=batch.targets,
            target_loss=self.base.config.problem_type,
        )

        def compute(hidden: Tensor) -> Tensor:
            if not self._hidden.head_reads_rows:
                return self.head.loss(hidden.flatten(0, -2), options)
            # The model picks some of what it takes for logits: all of them are the loss.
            loss = self.head.loss(self._pooled(hidden, batch), options)
            return loss.expand(*hidden.shape[:-1], self.head.out_features)

        with nullcontext() if self._pools_by_itself else self._reading(batch):
            return self._head_loss(batch, compute).flatten()[0]

    @property
    def _pools_by_itself(self) -> bool:
        """Return whether the model's own choice in each row is the right one."""
        own = ("unpadded",) if self._hidden.head_reads_rows else ("padded", "unpadded")
        return self.is_native and self.layout in own

    def _pooled(self, values: Tensor, batch: Batch) -> Tensor:
        """Return what stands for each sequence, (S, D), of values of all sub-words, (R, W, D)."""
        means = averaged(values, batch, word_segments(batch))
        return means.flatten(0, 1)[positions(batch, pooled(batch.sequences))]

    @contextmanager
    def _reading(self, batch: Batch) -> Iterator[None]:
        """Give the layers before the head one vector for each sequence, as the only one of a row."""
        if self._hidden.head_reads_rows:
            yield
            return
        if not self._hidden.can_choose:
            raise RuntimeError(f"{type(self.base).__name__} changes its hidden states behind its last layer")
        choosing = self._hidden.choosing(lambda hidden: self._pooled(hidden, batch).unsqueeze(1))
        with _taking_the_first(self.base.config), choosing:
            yield


@contextmanager
def _taking_the_first(config: Any) -> Iterator[None]:
    """Let a model that averages a row by its mask take the row's only vector."""
    chosen = getattr(config, "classifier_pooling", None)
    if chosen is None:
        yield
        return
    config.classifier_pooling = "cls"
    try:
        yield
    finally:
        config.classifier_pooling = chosen
