"""Turn a ZeRO checkpoint of some ranks into one of another number of ranks.

DeepSpeed loads checkpoints of as many ranks as there are. Its universal checkpoints know ``exp_avg`` and
``exp_avg_sq`` alone, so 8-bit states would be lost. Here the files of N ranks become those of M, in one
format: weights, and whatever the optimizer keeps for every weight. Codes move as they are where blocks of
256 do (then nothing is rounded again), and are decoded and encoded again elsewhere.

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
from fangyan.training.checkpoint_files import load

# How bitsandbytes wraps what FSDP must not touch.
_WRAPPED = "__bnb_optimizer_quant_state__"


@dataclass(frozen=True)
class Span:
    """Elements [start, stop) of a group's weights, and their offset in a rank's vector."""

    start: int
    stop: int
    offset: int


@dataclass(frozen=True)
class Layout:
    """How a group's weights lie on ``ranks`` ranks.

    Attributes:
        numels: elements of each weight.
        by_weight: whether each weight is cut by itself (ZeRO 3).
        ranks: how many.
        size: elements on each rank, zeros at the end included.
    """

    numels: tuple[int, ...]
    by_weight: bool
    ranks: int
    size: int

    @property
    def total(self) -> int:
        """Return the elements of all weights."""
        return sum(self.numels)

    def spans(self, rank: int) -> list[Span]:
        """Return what a rank has of the group's weights."""
        if not self.by_weight:
            start = min(rank * self.size, self.total)
            return [Span(start, min(start + self.size, self.total), 0)]
        spans, begin, offset = [], 0, 0
        for numel in self.numels:
            size = math.ceil(numel / self.ranks)
            first, last = min(rank * size, numel), min((rank + 1) * size, numel)
            spans.append(Span(begin + first, begin + last, offset))
            begin, offset = begin + numel, offset + size
        return spans

    def in_blocks(self) -> bool:
        """Return whether blocks of codes are whole on every rank, and count from the group's beginning."""
        spans = [span for rank in range(self.ranks) for span in self.spans(rank) if span.start < span.stop]
        return all(span.start % BLOCK == 0 and span.offset % BLOCK == 0 for span in spans)


def move(parts: Sequence[Tensor], old: Layout, new: Layout, rank: int, unit: int = 1) -> Tensor:
    """Return ``rank``'s shard under the new layout, given all shards of the old one.

    Args:
        parts: by rank, (old.size,) or without the zeros at the end.
        old: layout of the parts.
        new: layout of the result.
        rank: of the new ranks.
        unit: weights that one element stands for, such as a block's for its scale.
    """
    whole = parts[0].new_zeros(math.ceil(new.total / unit))
    for i, part in enumerate(parts):
        for span in old.spans(i):
            first, last = span.start // unit, math.ceil(span.stop / unit)
            whole[first:last] = part[span.offset // unit :][: last - first]
    mine = whole.new_zeros(math.ceil(new.size / unit))
    for span in new.spans(rank):
        first, last = span.start // unit, math.ceil(span.stop / unit)
        mine[span.offset // unit :][: last - first] = whole[first:last]
    return mine


def move_state(states: Sequence[dict[str, Any]], old: Layout, new: Layout, rank: int) -> dict[str, Any]:
    """Return one group's optimizer state for ``rank``, given all ranks' states."""
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
    """Return codes and scales for ``rank``; AdEMAMix has two rows of each."""
    count = codes[0].numel() // old.size
    found = []
    for i in range(count):
        row = [part.view(count, -1)[i] for part in codes]
        scale = [part.view(count, -1)[i] for part in scales]
        if old.in_blocks() and new.in_blocks():
            found.append((move(row, old, new, rank), move(scale, old, new, rank, BLOCK)))
        else:
            values = [dequantize(*pair, qmap) for pair in zip(row, scale, strict=True)]
            found.append(quantize(move(values, old, new, rank), qmap))
    if codes[0].ndim == 1:
        return found[0]
    return torch.stack([pair[0] for pair in found]), torch.stack([pair[1] for pair in found])


def reshard(checkpoint: Path, target: Path, rank: int, sizes: Sequence[int], ranks: int) -> list[Path]:
    """Write ``rank``'s files of a checkpoint for ``ranks`` ranks into a folder; return them.

    DeepSpeed's files, of ``N`` ranks::

        ZeRO 1, 2   mp_rank_00_model_states.pt                        one, with the weights
                    *zero_pp_rank_{0..N-1}_mp_rank_00_optim_states.pt  optimizer_state_dict:
                        single_partition_of_fp32_groups   this rank's part of each flat vector
                        base_optimizer_state.state[i]     the optimizer's states of it
        ZeRO 3      zero_pp_rank_{0..N-1}_mp_rank_00_model_states.pt  with this rank's part of frozen weights
                    *zero_pp_rank_{0..N-1}_mp_rank_00_optim_states.pt  optimizer_state_dict:
                        fp32_flat_groups                  this rank's part of each flat vector
                        optimizer_state_dict.state[i]     the optimizer's states of it

    Args:
        checkpoint: a whole checkpoint of another number of ranks, at ZeRO 1, 2 or 3.
        target: an existing folder.
        rank: whose files are written, of the new ranks.
        sizes: of the flat vectors that the optimizer steps on each of the new ranks.
        ranks: the new number of ranks.

    Raises:
        UserError: if it is of another model.
    """
    model_files = _by_rank(checkpoint, "*model_states.pt")
    model = load(model_files[0], mmap=True)
    optimizer_files = _by_rank(checkpoint, "*zero_pp_rank_*_optim_states.pt")
    shards = [load(path, mmap=True) for path in optimizer_files]
    groups = [[shape.numel() for shape in group.values()] for group in model["param_shapes"]]
    by_weight = int(shards[0]["optimizer_state_dict"]["zero_stage"]) == 3
    key = "fp32_flat_groups" if by_weight else "single_partition_of_fp32_groups"
    # The last rank's weights are without the zeros at the end, the first's have none.
    old_sizes = [part.numel() for part in shards[0]["optimizer_state_dict"][key]]
    pairs = layouts(groups, old_sizes, sizes, by_weight, (len(shards), ranks), checkpoint)

    _reshard_optimizer([shard["optimizer_state_dict"] for shard in shards], pairs, key, rank)
    written = [target / optimizer_files[0].name.replace("rank_0", f"rank_{rank}", 1)]
    torch.save(shards[0], written[0])
    model["dp_world_size"] = ranks
    if by_weight:
        _reshard_frozen(model, model_files, rank, ranks)
    if by_weight or rank == 0:
        written.append(target / model_files[0].name.replace("rank_0", f"rank_{rank}", 1 if by_weight else 0))
        torch.save(model, written[1])
    return written


def _reshard_optimizer(
    shards: Sequence[dict[str, Any]], pairs: Sequence[tuple[Layout, Layout]], key: str, rank: int
) -> None:
    """Turn the first old rank's optimizer into the new ``rank``'s, in place.

    Args:
        shards: ``optimizer_state_dict`` of every old rank.
        pairs: layouts of each flat vector, before and after.
        key: of the flat vectors of weights.
        rank: of the new ranks.
    """
    mine = shards[0]
    ranks = pairs[0][1].ranks
    inner = "optimizer_state_dict" if pairs[0][1].by_weight else "base_optimizer_state"
    states = mine[inner]["state"]
    mine[key] = [
        _without_zeros(move([shard[key][i] for shard in shards], old, new, rank), new, rank)
        for i, (old, new) in enumerate(pairs)
    ]
    for i, (old, new) in enumerate(pairs):
        if i in states:
            states[i] = move_state([shard[inner]["state"][i] for shard in shards], old, new, rank)
    if pairs[0][1].by_weight:
        mine["partition_count"] = ranks
    else:
        mine["partition_count"] = [ranks] * len(pairs)
        mine["group_paddings"] = [
            new.size * ranks - new.total if rank == ranks - 1 else 0 for _, new in pairs
        ]


def _reshard_frozen(model: dict[str, Any], files: Sequence[Path], rank: int, ranks: int) -> None:
    """Turn the first old rank's parts of frozen weights into the new ``rank``'s, in place (ZeRO 3)."""
    shapes = model.get("frozen_param_shapes") or {}
    if not shapes:
        return
    parts = [load(path, mmap=True)["frozen_param_fragments"] for path in files]
    for name, shape in shapes.items():
        numels, size = (shape.numel(),), shape.numel()
        old = Layout(numels, True, len(files), math.ceil(size / len(files)))
        new = Layout(numels, True, ranks, math.ceil(size / ranks))
        fragments = [part[name].flatten() for part in parts]
        model["frozen_param_fragments"][name] = move(fragments, old, new, rank)


def layouts(
    groups: Sequence[Sequence[int]],
    old_sizes: Sequence[int],
    new_sizes: Sequence[int],
    by_weight: bool,
    ranks: tuple[int, int],
    checkpoint: Path,
) -> list[tuple[Layout, Layout]]:
    """Return the layout of each flat vector, before and after.

    Raises:
        UserError: if the vectors are not of one model.
    """
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
    """Return the weights of each vector: ZeRO 3 makes several of a large group, each until it is full."""
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
