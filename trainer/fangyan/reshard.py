"""A ZeRO checkpoint of some ranks as one of another number of ranks.

DeepSpeed loads what as many ranks have saved. Its universal checkpoints know ``exp_avg`` and ``exp_avg_sq``
alone, so 8-bit states would be lost. Here the files of N ranks become those of M, in the same format:
weights, and whatever the optimizer keeps for every weight. Codes move as they are where blocks of 256 do
(then nothing is rounded anew), and are decoded and encoded again elsewhere.

ZeRO 1 and 2 cut the vector of a group's weights into equal parts, ZeRO 3 each weight by itself. Both fill up
with zeros, which are no part of a checkpoint's meaning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fangyan_kernels.optim8bit.reference import BLOCK, dequantize, quantize
from torch import Tensor

from fangyan.errors import UserError

# How bitsandbytes wraps what FSDP must not touch.
_WRAPPED = "__bnb_optimizer_quant_state__"


@dataclass(frozen=True)
class Span:
    """Numbers [start, stop) of a group's weights, and where a rank has them."""

    start: int
    stop: int
    place: int


@dataclass(frozen=True)
class Layout:
    """How a group's weights lie on ``ranks`` ranks.

    Attributes:
        numels: the size of each weight.
        by_weight: whether each weight is cut by itself (ZeRO 3).
        size: numbers on each rank, zeros at the end included.
    """

    numels: tuple[int, ...]
    by_weight: bool
    ranks: int
    size: int

    @property
    def total(self) -> int:
        return sum(self.numels)

    def spans(self, rank: int) -> list[Span]:
        if not self.by_weight:
            start = min(rank * self.size, self.total)
            return [Span(start, min(start + self.size, self.total), 0)]
        spans, begin, place = [], 0, 0
        for numel in self.numels:
            share = math.ceil(numel / self.ranks)
            first, last = min(rank * share, numel), min((rank + 1) * share, numel)
            spans.append(Span(begin + first, begin + last, place))
            begin, place = begin + numel, place + share
        return spans

    def in_blocks(self) -> bool:
        """Whether blocks of codes are whole on every rank, and count from the group's beginning."""
        spans = [span for rank in range(self.ranks) for span in self.spans(rank) if span.start < span.stop]
        return all(span.start % BLOCK == 0 and span.place % BLOCK == 0 for span in spans)


def move(parts: Sequence[Tensor], old: Layout, new: Layout, rank: int, unit: int = 1) -> Tensor:
    """What ``rank`` has of a vector in the new layout, of what all ranks have of it in the old one.

    Args:
        parts: by rank, (old.size,) or without the zeros at the end.
        unit: numbers that one element stands for, such as a block's for its scale.
    """
    whole = parts[0].new_zeros(math.ceil(new.total / unit))
    for number, part in enumerate(parts):
        for span in old.spans(number):
            first, last = span.start // unit, math.ceil(span.stop / unit)
            whole[first:last] = part[span.place // unit :][: last - first]
    mine = whole.new_zeros(math.ceil(new.size / unit))
    for span in new.spans(rank):
        first, last = span.start // unit, math.ceil(span.stop / unit)
        mine[span.place // unit :][: last - first] = whole[first:last]
    return mine


def move_state(states: Sequence[dict[str, Any]], old: Layout, new: Layout, rank: int) -> dict[str, Any]:
    """One group's optimizer state for ``rank``, of all ranks' states."""
    flat = [{**{k: v for k, v in s.items() if k != _WRAPPED}, **s.get(_WRAPPED, {})} for s in states]
    moved: dict[str, Any] = {}
    for key, first in flat[0].items():
        if key.startswith("absmax"):
            continue  # with its codes
        cut = isinstance(first, Tensor) and first.numel() in (old.size, 2 * old.size)
        if not cut or key.startswith("qmap"):
            moved[key] = first
        elif first.dtype == torch.uint8:
            scales = key.replace("state", "absmax")
            qmap = flat[0][key.replace("state", "qmap")]
            moved[key], moved[scales] = _move_codes(
                [s[key] for s in flat], [s[scales] for s in flat], qmap, old, new, rank
            )
        else:
            rows = [s[key].view(-1, old.size) for s in flat]
            parts = [move([row[i] for row in rows], old, new, rank) for i in range(len(rows[0]))]
            moved[key] = torch.stack(parts) if first.ndim == 2 else parts[0]
    if _WRAPPED not in states[0]:
        return moved
    wrapped = {key: moved.pop(key) for key in states[0][_WRAPPED]}
    return {**moved, _WRAPPED: wrapped}


def _move_codes(
    codes: Sequence[Tensor],
    scales: Sequence[Tensor],
    qmap: Tensor,
    old: Layout,
    new: Layout,
    rank: int,
) -> tuple[Tensor, Tensor]:
    """Codes and scales for ``rank``; AdEMAMix has two rows of each."""
    count = codes[0].numel() // old.size
    found = []
    for i in range(count):
        row = [part.view(count, -1)[i] for part in codes]
        scale = [part.view(count, -1)[i] for part in scales]
        if old.in_blocks() and new.in_blocks():
            found.append((move(row, old, new, rank), move(scale, old, new, rank, BLOCK)))
        else:
            numbers = [dequantize(*pair, qmap) for pair in zip(row, scale, strict=True)]
            found.append(quantize(move(numbers, old, new, rank), qmap))
    if codes[0].ndim == 1:
        return found[0]
    return torch.stack([pair[0] for pair in found]), torch.stack([pair[1] for pair in found])


def reshard(checkpoint: Path, target: Path, rank: int, sizes: Sequence[int], ranks: int) -> None:
    """Writes ``rank``'s files of a checkpoint for ``ranks`` ranks into the folder ``target``.

    Args:
        checkpoint: a whole checkpoint of another number of ranks, at ZeRO 1, 2 or 3.
        sizes: of the flat vectors that the optimizer steps on each of the new ranks.

    Raises:
        UserError: if it is of another model.
    """
    optimizer_files = _by_rank(checkpoint, "*zero_pp_rank_*_optim_states.pt")
    old = [_load(path) for path in optimizer_files]
    model_files = _by_rank(checkpoint, "*model_states.pt")
    model = _load(model_files[0])
    states = [part["optimizer_state_dict"] for part in old]
    by_weight = int(states[0]["zero_stage"]) == 3
    weights = "fp32_flat_groups" if by_weight else "single_partition_of_fp32_groups"
    inner = "optimizer_state_dict" if by_weight else "base_optimizer_state"
    mine = states[0]
    base = states[0][inner]
    pairs = layouts(
        [[shape.numel() for shape in group.values()] for group in model["param_shapes"]],
        # The last rank's weights are without the zeros at the end, the first's have none.
        [part.numel() for part in states[0][weights]],
        sizes,
        by_weight,
        (len(old), ranks),
        checkpoint,
    )
    mine[weights] = [
        _without_zeros(move([s[weights][i] for s in states], before, after, rank), after, rank)
        for i, (before, after) in enumerate(pairs)
    ]
    for i, (before, after) in enumerate(pairs):
        if i in base["state"]:
            base["state"][i] = move_state([s[inner]["state"][i] for s in states], before, after, rank)
    if by_weight:
        mine["partition_count"] = ranks
    else:
        mine["partition_count"] = [ranks] * len(pairs)
        mine["group_paddings"] = [
            after.size * ranks - after.total if rank == ranks - 1 else 0 for _, after in pairs
        ]
    name = optimizer_files[0].name.replace("rank_0", f"rank_{rank}", 1)
    torch.save(old[0], target / name)

    model["dp_world_size"] = ranks
    if by_weight:
        shapes = model.get("frozen_param_shapes") or {}
        everyone = [_load(path)["frozen_param_fragments"] for path in model_files] if shapes else []
        for key, shape in shapes.items():
            numels, size = (shape.numel(),), math.ceil(shape.numel() / ranks)
            before = Layout(numels, True, len(old), math.ceil(shape.numel() / len(old)))
            parts = [part[key].flatten() for part in everyone]
            model["frozen_param_fragments"][key] = move(
                parts, before, Layout(numels, True, ranks, size), rank
            )
        torch.save(model, target / model_files[0].name.replace("rank_0", f"rank_{rank}", 1))
    elif rank == 0:
        torch.save(model, target / model_files[0].name)


def layouts(
    groups: Sequence[Sequence[int]],
    old_sizes: Sequence[int],
    new_sizes: Sequence[int],
    by_weight: bool,
    ranks: tuple[int, int],
    checkpoint: Path,
) -> list[tuple[Layout, Layout]]:
    """Of each flat vector, before and after."""
    if by_weight:
        groups = _sub_groups(groups, old_sizes, ranks[0])
    pairs = []
    if len(groups) == len(old_sizes) == len(new_sizes):
        for numels, before, after in zip(groups, old_sizes, new_sizes, strict=True):
            old, new = (
                Layout(tuple(numels), by_weight, count, size)
                for count, size in zip(ranks, (before, after), strict=True)
            )
            pairs.append((old, new))
    if not pairs or any(layout.ranks * layout.size < layout.total for pair in pairs for layout in pair):
        raise UserError(
            f"{checkpoint}: its weights are not this model's, expected a checkpoint of the same recipe"
        )
    return pairs


def _sub_groups(groups: Sequence[Sequence[int]], sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """ZeRO 3 makes several vectors of a large group: each takes weights until it is full."""
    found: list[list[int]] = []
    left = list(sizes)
    for group in groups:
        room = 0
        for numel in group:
            if room <= 0 and left:
                found.append([])
                room = left.pop(0)
            room -= math.ceil(numel / ranks)
            found[-1].append(numel)
    return found


def _without_zeros(part: Tensor, layout: Layout, rank: int) -> Tensor:
    if layout.by_weight or rank < layout.ranks - 1:
        return part
    return part[: layout.total - rank * layout.size].clone()


def _by_rank(folder: Path, pattern: str) -> list[Path]:
    def number(path: Path) -> int:
        return int(path.name.partition("pp_rank_")[2].partition("_")[0] or 0)

    return sorted(folder.glob(pattern), key=number)


def _load(path: Path) -> Any:
    """Tensors stay in the file until they are used; the file holds DeepSpeed's own classes."""
    return torch.load(path, map_location="cpu", mmap=True, weights_only=False)
