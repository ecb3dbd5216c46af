"""Whole sequences side by side: batches without padding.

Dialect sentences are short (HKCanCor averages 12.5 characters), and the usual loop pads each to
128. Here sequences share a row; attention and positions start again at each of them.

Two layouts of the same batch: one long row whose boundaries a variable-length attention kernel reads; for
models that cannot take it, short rows with a block-diagonal mask, since attention over a row costs its
square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fangyan.data.tokenization import IGNORE_INDEX, TokenizedSequence

# Where attention over a row costs its square: short sentences fill rows of this width to over 95%.
ROW_WIDTH = 64

_TENSORS = ("input_ids", "position_ids", "sequence_ids", "labels")
_OPTIONAL = ("class_weights", "token_type_ids", "targets")


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences in rows. R rows, W columns.

    Attributes:
        input_ids: (R, W), int64.
        position_ids: (R, W), int64, from 0 in every sequence.
        sequence_ids: (R, W), int64: 1, 2, … along a row, 0 where there is nothing.
        labels: (R, W), int64, ``IGNORE_INDEX`` where nothing is to be learned.
        sequences: what is in it.
        offsets: row and column where each of the sequences begins, in their order.
        labelled: where labels are not ``IGNORE_INDEX``, of all rows one after the other, (num_valid,), int64;
            it stays on the host.
        class_weights: factor on the loss of each class, (C,), float32, where classes have one.
        token_type_ids: which of a pair of texts each sub-word is of, (R, W), int64, where the model is told.
        targets: numbers to learn in place of classes, (sequences, C), float32, where a task has such.
    """

    input_ids: Tensor
    position_ids: Tensor
    sequence_ids: Tensor
    labels: Tensor
    sequences: Sequence[TokenizedSequence]
    offsets: list[tuple[int, int]]
    labelled: Tensor
    class_weights: Tensor | None = None
    token_type_ids: Tensor | None = None
    targets: Tensor | None = None

    @property
    def num_valid(self) -> int:
        """Return how many labels are not ``IGNORE_INDEX``, which the host knows before a GPU does."""
        return len(self.labelled)

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on a device."""
        tensors = {name: getattr(self, name) for name in (*_TENSORS, *_OPTIONAL)}
        moved = {name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None}
        return replace(self, **moved)


def collate(sequences: Sequence[TokenizedSequence], pad_id: int, width: int | None = ROW_WIDTH) -> Batch:
    """Lay sequences into rows.

    Args:
        sequences: what to lay out; none at all makes one row of padding, for a rank without work.
        pad_id: the id of empty places.
        width: of a row, grown to the longest sequence; 0 puts one sequence in each row (padding),
            None puts all of them in one row, whose end is empty up to a multiple of :data:`ROW_WIDTH`:
            products of an odd number of tokens are slower, and a library compiles each new size again.
    """
    lengths = [len(sequence.input_ids) for sequence in sequences]
    rows = _rows(lengths, width)
    row_width = max((sum(lengths[i] for i in row) for row in rows), default=1)
    if width is None:
        row_width = -(-row_width // ROW_WIDTH) * ROW_WIDTH
    shape = (max(len(rows), 1), max(row_width, 1))
    arrays = {
        "input_ids": np.full(shape, pad_id, dtype=np.int64),
        "position_ids": np.zeros(shape, dtype=np.int64),
        "sequence_ids": np.zeros(shape, dtype=np.int64),
        "labels": np.full(shape, IGNORE_INDEX, dtype=np.int64),
    }
    if any(sequence.segments for sequence in sequences):
        arrays["token_type_ids"] = np.zeros(shape, dtype=np.int64)
    offsets = [(0, 0)] * len(sequences)
    for row, members in enumerate(rows):
        column = 0
        for order, i in enumerate(members, start=1):
            span = slice(column, column + lengths[i])
            arrays["input_ids"][row, span] = sequences[i].input_ids
            arrays["position_ids"][row, span] = np.arange(lengths[i])
            arrays["sequence_ids"][row, span] = order
            arrays["labels"][row, span] = sequences[i].labels
            if sequences[i].segments:
                arrays["token_type_ids"][row, span] = sequences[i].segments
            offsets[i] = (row, column)
            column += lengths[i]
    labelled = torch.from_numpy(np.flatnonzero(arrays["labels"] != IGNORE_INDEX))
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if sequences and sequences[0].targets:
        tensors["targets"] = torch.tensor([sequence.targets for sequence in sequences], dtype=torch.float32)
    return Batch(**tensors, sequences=sequences, offsets=offsets, labelled=labelled)


def word_segments(batch: Batch) -> tuple[Tensor, Tensor] | None:
    """Return segments of a batch's sub-words, row after row, whose means are classified.

    They come from the words that the host knows, as :attr:`WordAlignment.widths` says.

    Returns:
        The sub-words of each segment, (S,), and the segment of each sub-word, (R W,), int64; None where every
        sub-word is a segment of its own.
    """
    averaged = [
        (sequence.alignment, offset)
        for sequence, offset in zip(batch.sequences, batch.offsets, strict=True)
        if sequence.alignment is not None and sequence.alignment.widths
    ]
    if not averaged:
        return None
    row_width = batch.input_ids.shape[1]
    continues = np.zeros(batch.input_ids.numel(), dtype=bool)  # into the next sub-word
    for words, (row, column) in averaged:
        for place, width in zip(words.places, words.widths, strict=True):
            end = row * row_width + column + place
            continues[end - width + 1 : end] = True
    if not continues.any():
        return None
    segment_of = np.cumsum(~continues) - ~continues
    lengths = np.bincount(segment_of)
    return torch.from_numpy(lengths), torch.from_numpy(segment_of)


def split_by_length(batch: Batch) -> list[tuple[list[int], Batch]]:
    """Split a batch of one sequence per row into batches without padding: the rows of each, and it."""
    rows: dict[int, list[int]] = {}
    for row, sequence in enumerate(batch.sequences):
        rows.setdefault(len(sequence.input_ids), []).append(row)
    if not rows:
        return [([0], batch)]
    return [(members, _select(batch, members, length)) for length, members in sorted(rows.items())]


def _select(batch: Batch, rows: list[int], width: int) -> Batch:
    """Return some rows of a batch, cut to a width."""
    sequences = [batch.sequences[row] for row in rows]
    tensors = {name: getattr(batch, name)[rows, :width] for name in _TENSORS}
    if batch.token_type_ids is not None:
        tensors["token_type_ids"] = batch.token_type_ids[rows, :width]
    if batch.targets is not None:
        tensors["targets"] = batch.targets[rows]
    labels = np.full((len(rows), width), IGNORE_INDEX, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        labels[row, : len(sequence.labels)] = sequence.labels
    labelled = torch.from_numpy(np.flatnonzero(labels != IGNORE_INDEX))
    offsets = [(row, 0) for row in range(len(rows))]
    return replace(batch, **tensors, sequences=sequences, offsets=offsets, labelled=labelled)


def mask_tokens(batch: Batch, rate: float, mask_id: int) -> Batch:
    """Replace a random fraction of the labelled sub-words by the mask token; their labels stay.

    A tagger then learns to read a word from its neighbours, as it must where a word is new
    (Kondratyuk & Straka 2019, arXiv 1904.02099, section 3).
    """
    hidden = (torch.rand(batch.input_ids.shape) < rate) & (batch.labels != IGNORE_INDEX)
    return replace(batch, input_ids=torch.where(hidden, mask_id, batch.input_ids))


def _rows(lengths: list[int], width: int | None) -> list[list[int]]:
    """Best fit, longest first: each sequence goes to the fullest row that still has room for it."""
    if width is None:
        return [list(range(len(lengths)))] if lengths else []
    if width == 0:
        return [[i] for i in range(len(lengths))]
    width = max([width, *lengths])
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(width + 1)]
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        room = next((room for room in range(lengths[i], width) if by_room[room]), width)
        if room < width:
            row = by_room[room].pop()
        else:
            row = len(rows)
            rows.append([])
        rows[row].append(i)
        by_room[room - lengths[i]].append(row)
    return rows
