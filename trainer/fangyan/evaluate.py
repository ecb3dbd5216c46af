"""Predictions and scores of a model on examples, alone or on every rank of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from fangyan.data.encode import IGNORE, Encoder, Window
from fangyan.data.examples import Example
from fangyan.data.order import length_batches
from fangyan.data.packing import Batch, collate
from fangyan.tasks.language_modelling import LanguageModelling
from fangyan.tasks.scores import Scores
from fangyan.tasks.token_tagging import TokenTagging

Logits = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Tagger:
    """All that turns sentences into tags.

    Attributes:
        task: the labels and how they are decoded.
        encoder: tokens to windows.
        logits: the model: a batch to logits, (R, W, C).
        device: where the model is.
        row_width: see :func:`fangyan.data.packing.collate`.
        rank, ranks: this process' share of the work; by default all of it.
        batch_tokens: sub-words in a batch of evaluation.
    """

    task: TokenTagging
    encoder: Encoder
    logits: Logits
    device: torch.device
    row_width: int | None
    rank: int = 0
    ranks: int = 1
    batch_tokens: int = 4096

    def tag(self, sentences: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Tags of every sentence, in order.

        With several ranks each must call it with the same sentences; each does its share.
        """
        windows = [self.encoder.windows(sentence) for sentence in sentences]
        flat = [(i, window) for i, group in enumerate(windows) for window in group if window.first]
        scores = self._scores([window for _, window in flat])
        sized = [np.zeros((len(sentence), len(self.task.labels)), np.float32) for sentence in sentences]
        for (i, window), score in zip(flat, scores, strict=True):
            start, end = window.owned
            sized[i][start:end] = score[start - window.start : end - window.start]
        return [self.task.decode(score) for score in sized]

    def score(self, examples: Sequence[Example]) -> Scores:
        return self.task.score(examples, self.tag([example.tokens for example in examples]))

    def _scores(self, windows: list[Window]) -> list[NDArray[np.float32]]:
        """Log-probabilities of the tokens of each window, (tokens, C)."""
        lengths = [len(window.input_ids) for window in windows]
        batches = length_batches(lengths, self.batch_tokens)
        found: dict[int, NDArray[np.float32]] = {}
        # Under ZeRO-3 a forward gathers weights from every rank: all make the same number of them.
        for first in range(0, len(batches), self.ranks):
            mine = batches[first + self.rank] if first + self.rank < len(batches) else []
            found.update(self._batch_scores(mine, windows))
        if self.ranks > 1:
            gathered: list[dict[int, NDArray[np.float32]]] = [{}] * self.ranks
            dist.all_gather_object(gathered, found)
            found = {i: score for part in gathered for i, score in part.items()}
        return [found[i] for i in range(len(windows))]

    @torch.no_grad()
    def _batch_scores(self, members: list[int], windows: list[Window]) -> dict[int, NDArray[np.float32]]:
        chosen = [windows[i] for i in members]
        batch = collate(chosen, self.encoder.pad_id, self.row_width).to(self.device)
        log_probabilities = self.logits(batch).float().log_softmax(-1).cpu().numpy()
        return {
            i: log_probabilities[row, [column + first for first in window.first]]
            for i, window, (row, column) in zip(members, chosen, batch.places, strict=True)
        }


@dataclass(frozen=True)
class Reader:
    """All that gives a language model's perplexity on text.

    Attributes:
        loss: the model: a batch to the summed loss of its targets, ().
        Others as those of :class:`Tagger`.
    """

    task: LanguageModelling
    encoder: Encoder
    loss: Callable[[Batch], Tensor]
    device: torch.device
    row_width: int | None
    rank: int = 0
    ranks: int = 1
    batch_tokens: int = 4096

    @torch.no_grad()
    def score(self, examples: Sequence[Example]) -> Scores:
        """Perplexities; with several ranks each must call it with the same examples."""
        groups = self.task.encode(examples, self.encoder)
        windows = [window for group in groups for window in group]
        batches = length_batches([len(window.input_ids) for window in windows], self.batch_tokens)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        # As in Tagger: every rank makes the same number of forwards.
        for first in range(0, len(batches), self.ranks):
            mine = batches[first + self.rank] if first + self.rank < len(batches) else []
            batch = collate([windows[i] for i in mine], self.encoder.pad_id, self.row_width)
            total += self.loss(batch.to(self.device)).double()
        if self.ranks > 1:
            dist.all_reduce(total)
        subwords = sum(target != IGNORE for window in windows for target in window.targets)
        characters = sum(len(example.tokens[0]) for example in examples)
        return self.task.scores(float(total), subwords, characters)
