"""What a step trains on: its sequences as they are in that step, in micro-batches."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from fangyan.data.masking import draws
from fangyan.data.packing import Batch, collate, mask_tokens
from fangyan.data.token_store import TokenStore
from fangyan.data.tokenization import IGNORE_INDEX, TokenizedSequence, Tokenizer
from fangyan.device import device
from fangyan.models.packed import PackedModel
from fangyan.objectives.objective import Prepared
from fangyan.recipe import Recipe
from fangyan.tasks.task import Task


class StepBatches:
    """The batches of a workload's steps; see :class:`fangyan.training.workload.Workload`."""

    recipe: Recipe
    task: Task
    tokenizer: Tokenizer
    model: PackedModel
    sequences: TokenStore
    num_valid: NDArray[np.int32]
    prepared: Prepared
    _class_weights: torch.Tensor | None
    # The latest step, and its sequences as they were changed for it.
    _changed: tuple[str, dict[int, TokenizedSequence]]

    def total_weight(self, indices: list[int], step: str = "0") -> float:
        """Return what the loss of a step is divided by: how many labels it has, or the sum of their weights.

        Args:
            indices: of the step's sequences, over all ranks.
            step: number of the step, by which sequences change.
        """
        if self.task.corrupts:
            changed = self._training_sequences(indices, step)
            return float(sum(label != IGNORE_INDEX for sequence in changed for label in sequence.labels))
        weights = self._class_weights
        if weights is None or self.task.has_targets:
            return float(self.num_valid[indices].sum())
        chosen = self._training_sequences(indices, step)
        labels = torch.tensor([label for sequence in chosen for label in sequence.labels])
        return float(weights.double()[labels[labels != IGNORE_INDEX]].sum())

    def _training_sequences(self, indices: list[int], step: str) -> list[TokenizedSequence]:
        """Return sequences as a step trains on them."""
        if not self.task.corrupts:
            chosen = [self.sequences[i] for i in indices]
            if self.prepared.teacher is None:
                return chosen
            return self.prepared.teacher.mixed(chosen, indices, self.prepared.share, self.recipe.seed, step)
        # Counted for all ranks, and then trained on by one: made once.
        if self._changed[0] != step or not all(i in self._changed[1] for i in indices):
            chosen = [self.sequences[i] for i in indices]
            found = self.task.corrupt(chosen, draws(self.recipe.seed, step, indices), self.tokenizer)
            self._changed = step, dict(zip(indices, found, strict=True))
        return [self._changed[1][i] for i in indices]

    def micro_batch(self, indices: list[int], key: str) -> Batch:
        """Return sequences as a batch on the device; ``key``, ``step/micro-batch``, seeds what is random."""
        # Dropout follows the micro-batch, not the rank: one rank with two of them and two ranks with one
        # draw the same masks, and a resumed run needs no generator's state.
        torch.manual_seed(zlib.crc32(f"{self.recipe.seed}/{key}".encode()))
        chosen = self._training_sequences(indices, key.partition("/")[0])
        batch = collate(chosen, self.tokenizer.pad_id, self.model.row_width)
        if self._class_weights is not None:
            batch = replace(batch, class_weights=self._class_weights)
        if self.tokenizer.mask_id is not None and self.recipe.train.token_masking:
            batch = mask_tokens(batch, self.recipe.train.token_masking, self.tokenizer.mask_id)
        return batch.to(device())
