"""Whether a graph answers as its run does, how well it scores, and how fast it is beside it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import numpy as np
import torch

from fangyan.data.batching import Batches, bucket_by_length
from fangyan.data.example import Example
from fangyan.data.packing import collate
from fangyan.data.tokenization import Tokenizer
from fangyan.device import device
from fangyan.errors import UserError
from fangyan.inference.graph import GraphModel
from fangyan.inference.load import ExportedModel
from fangyan.models.packed import PackedModel
from fangyan.tasks.evaluation import BATCH_TOKENS
from fangyan.tasks.task import Metrics, Task

# Of the largest logit: float32 sums in another order differ by some millionths of it.
TOLERANCE = 1e-4
# Answers that may differ where two are as likely to the last digits.
_TIES = 1e-3
# Of the split, so many examples are compared at most, and so many sub-words: minutes on a CPU.
EXAMPLES, SUBWORDS = 2_000, 100_000
# Logits of a batch: 256 MB of them.
_LOGITS = 1 << 26
# What is timed: sentences, of lengths as they are in the split, one in a call and so many.
TIMED, TOGETHER = 64, 32
_ROUNDS, _SECONDS = 7, 10.0

Model = PackedModel | GraphModel


@dataclass(frozen=True)
class Agreement:
    """How near a graph is to its run.

    Attributes:
        difference: largest of two logits, as a fraction of the largest logit.
        examples: that were compared.
        answers: of them, those with an answer: a tag per token, a class or a span.
        same: of the answers, those that are the same.
    """

    difference: float
    examples: int
    answers: int
    same: int

    def check(self, folder: str) -> None:
        """Refuse a graph whose logits are others, or whose answers are.

        Raises:
            UserError: if more differs than the last digits of float32 explain.
        """
        # A difference that is no number is not within any bound.
        if not self.difference <= TOLERANCE or self.answers - self.same > _TIES * self.answers:
            raise UserError(
                f"{folder}: the ONNX graph is not the run's model: its logits differ by up to "
                f"{self.difference:.1e} of the largest, expected at most {TOLERANCE:.0e}, and "
                f"{self.answers - self.same:,} of {self.answers:,} answers are others; nothing was written"
            )


class Comparison:
    """The examples that forms of a model are compared on.

    Args:
        exported: the run's model.
        examples: of a split that it has not learned from, of which the first are taken; see :data:`EXAMPLES`.
    """

    def __init__(self, exported: ExportedModel, examples: Sequence[Example]):
        self.task: Task = exported.task
        self.run = exported.packed()
        tokenizer = Tokenizer(exported.backend)
        self._pad_id = tokenizer.pad_id
        self._kept: dict[Model, list[Any]] = {}
        chosen = list(islice(examples, EXAMPLES))
        sequences = self.task.tokenize_scored(chosen, tokenizer, exported.max_length)
        ends = np.cumsum([len(sequence.input_ids) for sequence in sequences])
        within = [sequence for sequence, end in zip(sequences, ends, strict=True) if end <= SUBWORDS]
        # Of the last example some sequences may be beyond.
        last = max(sequences[len(within)].example, 1) if len(within) < len(sequences) else len(chosen)
        self.examples = chosen[:last]
        self.sequences = [sequence for sequence in sequences if sequence.example < last]

    @property
    def has_segments(self) -> bool:
        """Return whether the model is told which of a pair of texts a sub-word is of."""
        return self.run.takes_segments and any(sequence.segments for sequence in self.sequences)

    @torch.no_grad()
    def agreement(self, graph: GraphModel) -> Agreement:
        """Return how near a graph is to the run: its logits of padded batches, its answers one by one."""
        largest = difference = 0.0
        for members in self._batches():
            plain, padded = self._batch(self.run, members), self._batch(graph, members)
            found = self.run.split_logits(self.run.logits(plain).float().cpu(), plain)
            for ours, theirs in zip(
                found, graph.split_logits(graph.padded_logits(padded), padded), strict=True
            ):
                largest = max(largest, float(ours.abs().max()))
                difference = _larger(difference, float((ours - theirs).abs().max()))
        both = [self._predicted(model) for model in (self.run, graph)]
        same = sum(ours == theirs for ours, theirs in zip(*both, strict=True))
        return Agreement(difference / max(largest, 1e-30), len(self.examples), len(both[0]), same)

    def _predicted(self, model: Model) -> list[tuple[Any, ...]]:
        """Return what is predicted of each example; nothing of numbers and texts, which round otherwise."""
        found = self.task.predicted(self.examples, self._outputs(model)) or []
        return [] if any(isinstance(value, float) for values in found for value in values) else found

    @torch.no_grad()
    def metrics(self, model: Model) -> Metrics:
        """Return the task's metrics of a form of the model."""
        return self.task.metrics(self.examples, self._outputs(model))

    def _batches(self) -> Batches:
        widest = self.run.head.out_features
        lengths = np.array([len(sequence.input_ids) for sequence in self.sequences])
        return bucket_by_length(lengths, max(1, min(BATCH_TOKENS, _LOGITS // widest)))

    def _batch(self, model: Model, members: Sequence[int]) -> Any:
        chosen = [self.sequences[i] for i in members]
        return collate(chosen, self._pad_id, model.row_width).to(device())

    def _outputs(self, model: Model) -> list[Any]:
        """Return the task's outputs of all examples, which are computed once."""
        if model not in self._kept:
            packed = cast(PackedModel, model)  # a graph has what tasks use of one
            batches = (self._batch(model, members) for members in self._batches())
            self._kept[model] = [output for batch in batches for output in self.task.outputs(packed, batch)]
        return self._kept[model]

    @torch.no_grad()
    def milliseconds(self, models: Sequence[Model], together: int) -> list[float]:
        """Return how long each form of the model takes for a sequence, ms, the median of rounds.

        Sequences of similar length are in a batch, as in prediction. The forms take turns in every
        round, so that a busy machine is as slow for one as for another.

        Args:
            models: to time.
            together: sequences in a batch.
        """
        by_length = sorted(range(len(self.sequences)), key=lambda i: len(self.sequences[i].input_ids))
        chosen = by_length[:: max(1, len(by_length) // TIMED)][:TIMED]
        groups = [chosen[i : i + together] for i in range(0, len(chosen), together)]
        batches = [[self._batch(model, members) for members in groups] for model in models]

        def once(i: int) -> Callable[[], float]:
            def run() -> float:
                begin = time.perf_counter()
                for batch in batches[i]:
                    models[i].logits(batch).cpu()
                return (time.perf_counter() - begin) * 1000 / len(chosen)

            return run

        return take_turns([once(i) for i in range(len(models))])


def take_turns(measures: Sequence[Callable[[], float]]) -> list[float]:
    """Return the median of each of some measurements, taken in turns; the first round is not counted."""
    for measure in measures:
        measure()
    rounds: list[list[float]] = []
    end = time.perf_counter() + _SECONDS
    while len(rounds) < _ROUNDS and (not rounds or time.perf_counter() < end):
        rounds.append([measure() for measure in measures])
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def _larger(left: float, right: float) -> float:
    """Return the larger of two numbers, or the second if it is none."""
    return right if not right <= left else left
