"""Labels drawn from a model's own distribution, for each label of its data.

A step that learns a label drawn from a teacher's distribution learns, on average, that whole distribution:
the gradient of its cross-entropy is unbiased (Anshumann et al. 2025, arXiv 2503.16870), and no vector of a
vocabulary's probabilities is kept, read or compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from fangyan.data.batching import bucket_by_length
from fangyan.data.masking import draws
from fangyan.data.packing import Batch, collate
from fangyan.data.tokenization import IGNORE_INDEX, TokenizedSequence
from fangyan.device import device
from fangyan.distributed.process_group import gathered
from fangyan.models.packed import PackedModel

# Sub-words in a forward.
_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class SampledLabels:
    """Labels that a model has drawn.

    Attributes:
        classes: of all sequences one after the other, some for each of their labels, (L, D), int32; they may
            be in a file.
        ends: where those of each sequence end, (S,).
    """

    classes: NDArray[np.int32]
    ends: NDArray[np.int64]

    def of(self, index: int) -> NDArray[np.int32]:
        """Return what was drawn for a sequence, (its labels, D)."""
        return self.classes[self.ends[index - 1] if index else 0 : self.ends[index]]

    def mixed(
        self,
        sequences: Sequence[TokenizedSequence],
        indices: Sequence[int],
        share: float,
        seed: int,
        step: str,
    ) -> list[TokenizedSequence]:
        """Return sequences with drawn labels in place of a share of theirs, by chance.

        Args:
            sequences: of a step.
            indices: of them.
            share: of their labels, on average.
            seed: of the run, which with the step and the sequence says what is replaced.
            step: number of the step.
        """
        found = []
        for sequence, index, drawn in zip(
            sequences, indices, draws(seed, f"{step}/teacher", indices), strict=True
        ):
            random = np.random.default_rng(int(drawn))
            classes = self.of(index)
            column = random.integers(classes.shape[1])
            is_replaced = random.random(len(classes)) < share
            labels = np.array(sequence.labels)
            places = (labels != IGNORE_INDEX).nonzero()[0]
            labels[places[is_replaced]] = classes[is_replaced, column]
            found.append(replace(sequence, labels=labels.tolist()))
        return found

    def save(self, path: Path) -> None:
        """Write them to a file."""
        with path.open("wb") as file:
            np.save(file, self.classes)


def load_labels(path: Path, num_labels: NDArray[np.integer[Any]]) -> SampledLabels | None:
    """Return labels of a file, which are read as they are needed; None if it is not whole.

    Args:
        path: of the file.
        num_labels: of each sequence, (S,).
    """
    ends = np.cumsum(num_labels, dtype=np.int64)
    try:
        classes = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    total = int(ends[-1]) if len(ends) else 0
    fits = classes.ndim == 2 and classes.dtype == np.int32 and len(classes) == total
    return SampledLabels(classes, ends) if fits else None


@torch.no_grad()
def sample_labels(
    engine: Any,
    model: PackedModel,
    sequences: Sequence[TokenizedSequence],
    lengths: NDArray[np.integer[Any]],
    pad_id: int,
    number: int,
    seed: int,
) -> SampledLabels:
    """Draw classes from the model's distribution at each label, without dropout. Collective.

    Args:
        engine: of DeepSpeed, around the model.
        model: whose distribution.
        sequences: with labels, of which only the places count.
        lengths: sub-words of each, (S,).
        pad_id: of the tokenizer.
        number: of draws for each label, D.
        seed: that with a sequence's number says what is drawn of a distribution.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    batches = bucket_by_length(lengths, _BATCH_TOKENS)
    own: list[tuple[int, NDArray[np.int32]]] = []
    engine.eval()
    # Under ZeRO-3 a forward gathers weights from every rank: all make the same number of them.
    for first in range(0, len(batches), ranks):
        members = batches[first + rank] if first + rank < len(batches) else []
        batch = collate([sequences[i] for i in members], pad_id, model.row_width).to(device())
        uniforms = [_uniforms(seed, i, sequences[i], number) for i in members]
        classes = engine(lambda packed, batch=batch, uniforms=uniforms: _draw(packed, batch, uniforms))
        ends = np.cumsum([len(random) for random in uniforms], dtype=np.int64)
        pieces = np.split(classes.cpu().numpy().astype(np.int32), ends[:-1]) if members else []
        own += zip(members, pieces, strict=True)
    engine.train()
    by_index = dict(pair for pairs in gathered(own) for pair in pairs)
    drawn = [by_index[i] for i in range(len(sequences))]
    return SampledLabels(np.concatenate(drawn), np.cumsum([len(piece) for piece in drawn], dtype=np.int64))


def _uniforms(seed: int, index: int, sequence: TokenizedSequence, number: int) -> NDArray[np.float32]:
    """Return a random number in [0, 1) for each draw of a sequence's labels, (its labels, D)."""
    count = sum(label != IGNORE_INDEX for label in sequence.labels)
    return np.random.default_rng([seed, index]).random((count, number), dtype=np.float32)


def _draw(model: PackedModel, batch: Batch, uniforms: Sequence[NDArray[np.float32]]) -> Tensor:
    """Return classes drawn at each label of a batch, (P, D), int64."""
    random = torch.from_numpy(np.concatenate(uniforms) if uniforms else np.zeros((0, 1), dtype=np.float32))
    random = random.to(batch.input_ids.device)

    def draw(logits: Tensor, span: slice) -> Tensor:
        cumulative = logits.softmax(-1).cumsum(-1)
        # Of the last sum, which is 1 but for rounding.
        classes = torch.searchsorted(cumulative, random[span] * cumulative[:, -1:])
        return classes.clamp(max=logits.shape[-1] - 1)

    return model.at_labels(batch, draw)
