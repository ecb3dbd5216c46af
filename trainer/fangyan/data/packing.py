"""Whole sequences side by side: batches without padding.

Dialect sentences are short (HKCanCor averages 12.5 characters), and the usual loop pads each to
128. Here sequences share a row; attention and positions start anew at each of them.

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

from fangyan.data.encode import IGNORE, Window

# Where attention over a row costs its square: short sentences fill rows of this width to over 95%.
ROW_WIDTH = 64


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences in rows. R rows, W columns.

    Attributes:
        input_ids: (R, W), int64.
        position_ids: (R, W), int64, from 0 in every sequence.
        sequence_ids: (R, W), int64: 1, 2, … along a row, 0 where there is nothing.
        targets: (R, W), int64, ``IGNORE`` where nothing is to be learned.
        places: row and column of each sequence, in the order they were given.
        lengths: sub-words of each sequence, in that order.
    """

    input_ids: Tensor
    position_ids: Tensor
    sequence_ids: Tensor
    targets: Tensor
    places: list[tuple[int, int]]
    lengths: list[int]

    def to(self, device: torch.device) -> Batch:
        names = ("input_ids", "position_ids", "sequence_ids", "targets")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})


def collate(windows: Sequence[Window], pad_id: int, width: int | None = ROW_WIDTH) -> Batch:
    """Lays windows into rows.

    Args:
        windows: what to lay out; none at all gives one row of padding, for a rank without work.
        pad_id: the id of empty places.
        width: of a row, grown to the longest window; 0 puts one window in each row (padding),
            None puts all of them in one row, whose end is empty up to a multiple of :data:`ROW_WIDTH`:
            products of an odd number of tokens are slower, and a library compiles each new number anew.
    """
    lengths = [len(window.input_ids) for window in windows]
    rows = _rows(lengths, width)
    row_width = max((sum(lengths[i] for i in row) for row in rows), default=1)
    if width is None:
        row_width = -(-row_width // ROW_WIDTH) * ROW_WIDTH
    shape = (max(len(rows), 1), max(row_width, 1))
    arrays = {
        "input_ids": np.full(shape, pad_id, dtype=np.int64),
        "position_ids": np.zeros(shape, dtype=np.int64),
        "sequence_ids": np.zeros(shape, dtype=np.int64),
        "targets": np.full(shape, IGNORE, dtype=np.int64),
    }
    places = [(0, 0)] * len(windows)
    for row, members in enumerate(rows):
        column = 0
        for number, i in enumerate(members, start=1):
            span = slice(column, column + lengths[i])
            arrays["input_ids"][row, span] = windows[i].input_ids
            arrays["position_ids"][row, span] = np.arange(lengths[i])
            arrays["sequence_ids"][row, span] = number
            arrays["targets"][row, span] = windows[i].targets
            places[i] = (row, column)
            column += lengths[i]
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return Batch(**tensors, places=places, lengths=lengths)


def mask_tokens(batch: Batch, rate: float, mask_id: int) -> Batch:
    """Replaces a random share of the labelled sub-words; their targets stay.

    A tagger then learns to read a word from its neighbours, as it must where a word is new
    (Kondratyuk & Straka 2019, arXiv 1904.02099, section 3).
    """
    hidden = (torch.rand(batch.input_ids.shape) < rate) & (batch.targets != IGNORE)
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


def block_mask(sequence_ids: Tensor, causal: bool) -> Tensor:
    """Who may attend to whom, (R, 1, W, W), bool: the same sequence, and for causal models the past.

    An empty place attends to the row's other empty places, so that no softmax is over nothing.
    """
    mask = sequence_ids[:, None, :, None] == sequence_ids[:, None, None, :]
    return mask.tril() if causal else mask


def boundaries(sequence_ids: Tensor) -> tuple[Tensor, int]:
    """Offsets of the sequences of a batch with one row, as variable-length kernels take them.

    Returns:
        Offsets, (sequences + 1,), int32, and the longest length.
    """
    counts = torch.unique_consecutive(sequence_ids[0], return_counts=True)[1]
    offsets = torch.zeros(len(counts) + 1, dtype=torch.int32, device=sequence_ids.device)
    offsets[1:] = counts.cumsum(0)
    return offsets, int(counts.max())
