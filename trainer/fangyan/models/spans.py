"""A transformers model that finds a span of each sequence, on packed batches."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from fangyan.data.packing import Batch
from fangyan.data.tokenization import TokenizedSequence, with_span
from fangyan.errors import UserError
from fangyan.models.loss_head import LogitTransform
from fangyan.models.packed import PackedModel
from fangyan.models.structure import evaluating

# Outputs of the head for each sub-word: whether a span starts there, and whether one ends there.
OUTPUTS = 2


class SpanModel(PackedModel):
    """Runs a model with a head for question answering; see :class:`PackedModel`.

    A sub-word's two outputs are logits among the sub-words of its own sequence, whatever else is in the row.
    """

    loss_name: ClassVar[str] = "mean cross-entropy of start and end"

    @override
    def _find_logit_transform(self) -> LogitTransform:
        """Return none, as long as the model's start and end logits are the outputs of its head.

        Raises:
            UserError: if they are others: of beams, or transformed.
        """
        outputs: list[Tensor] = []
        handle = self.head.register_forward_hook(lambda _head, _inputs, output: outputs.append(output))
        ids = torch.zeros(1, 16, dtype=torch.int64, device=self.head.weight.device)
        try:
            with evaluating(self.model):
                found = self.base(input_ids=ids)
        finally:
            handle.remove()
        logits = [getattr(found, name, None) for name in ("start_logits", "end_logits")]
        if len(outputs) != 1 or not all(
            values is not None and torch.equal(values, outputs[0][..., i]) for i, values in enumerate(logits)
        ):
            raise UserError(
                f"model.path: {type(self.base).__name__} has other outputs than the start and end logits of "
                "one linear head, expected these"
            )
        return LogitTransform()

    @override
    def _run(self, batch: Batch) -> Any:
        """Return the model's outputs for a batch; PEFT's class would drop positions and segments.

        Prompts, which need that class, are refused: they cannot save a new head.
        """
        return self.base(**self._inputs(batch))

    @override
    def _logits(self, batch: Batch) -> Tensor:
        found = self._run(batch)
        return torch.stack([found.start_logits, found.end_logits], -1)

    @override
    def expected_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss that transformers computes of each sequence's logits, (T, 2), summed."""
        losses = []
        parts = logits.split([len(sequence.input_ids) for sequence in batch.sequences])
        for part, sequence in zip(parts, batch.sequences, strict=True):
            places = torch.tensor(sequence.targets, dtype=torch.int64, device=logits.device)
            losses.append(nn.functional.cross_entropy(part.T, places))
        return torch.stack(losses).sum()

    @override
    def random_labels(self, sequence: TokenizedSequence, generator: torch.Generator) -> TokenizedSequence:
        length = len(sequence.input_ids)
        start, end = sorted(torch.randint(length, (OUTPUTS,), generator=generator).tolist())
        return with_span(sequence, start, end)

    @override
    def _loss(self, batch: Batch, divisor: float, label_smoothing: float) -> Tensor:
        del label_smoothing  # refused where numbers are learned
        places, lengths = _places(batch)

        def compute(hidden: Tensor) -> Tensor:
            logits = nn.Linear.forward(self.head, hidden).flatten(0, 1)[places]
            loss = span_losses(logits, lengths, batch.targets).sum() / divisor
            # The model takes apart what it takes for logits: all of them are the loss.
            return loss.expand(*hidden.shape[:-1], OUTPUTS)

        return self._head_loss(batch, compute).flatten()[0]


def span_losses(logits: Tensor, lengths: Tensor, targets: Tensor | None) -> Tensor:
    """Return the loss of each sequence, the mean of its start's and end's cross-entropy: (S,), float32.

    Args:
        logits: (S, L, 2), whatever is behind a sequence's end.
        lengths: of the sequences, (S,), int64.
        targets: start and end of each, (S, 2); None where there are no sequences but a place to stand for
            them, which costs nothing.
    """
    behind = torch.arange(logits.shape[1], device=logits.device) >= lengths[:, None]
    among = logits.float().masked_fill(behind[..., None], -torch.inf).log_softmax(1)
    if targets is None:
        targets = among.new_zeros(len(among), OUTPUTS)
    return -among.gather(1, targets.long()[:, None])[:, 0].mean(-1)


def _places(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return where the sub-words of each sequence are in a batch's rows, (S, L), and their number, (S,).

    Behind a sequence's end stands its last. A batch without sequences has one, its first place, so that a
    rank without work reaches the head all the same.
    """
    width, device = batch.input_ids.shape[1], batch.input_ids.device
    begins = np.array([row * width + column for row, column in batch.offsets] or [0])
    lengths = np.array([len(sequence.input_ids) for sequence in batch.sequences] or [1])
    within = np.minimum(np.arange(lengths.max()), lengths[:, None] - 1)
    return torch.from_numpy(begins[:, None] + within).to(device), torch.from_numpy(lengths).to(device)
