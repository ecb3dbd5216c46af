"""A model's weights as transformers' files, shard by shard: no rank has to hold the whole model for them.

Which weight goes into which file, and under which name, follows from names, shapes and dtypes. Then the
weights of one file at a time come to the first rank; at ZeRO-3 each rank has a part of every weight.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from fangyan.distributed.process_group import on_rank_zero
from fangyan.files import writing

# Bytes of a file's weights at most, but for a weight that is larger by itself.
SHARD_SIZE = 1_000_000_000


@dataclass(frozen=True)
class _Group:
    """Weights of a model that become weights of its files together.

    Attributes:
        sources: names in the model; most often one.
        targets: names, shapes and dtypes in the files.
        is_renaming: whether the only target is the only source, under its name or another.
    """

    sources: tuple[str, ...]
    targets: dict[str, Tensor]
    is_renaming: bool

    def convert(self, model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the files' weights, given the model's."""
        if self.is_renaming:
            return dict.fromkeys(self.targets, weights[self.sources[0]])
        converted: dict[str, Tensor] = revert_weight_conversion(model, weights)
        return converted


def write_shards(folder: Path, model: Any, advice: str, shard_size: int = SHARD_SIZE) -> None:
    """Write the weights as ``model.save_pretrained`` does. Collective.

    The first rank allocates one shard, and the largest weight beside it, at most; other ranks nothing. Where
    transformers makes weights of a file from others (those of a layer's experts, which the model has in one),
    what is made from one counts as one weight, twice.

    Args:
        folder: that there is on the first rank.
        model: of transformers.
        advice: what to do if a file cannot be written.
        shard_size: bytes per file at most, but for a weight that is larger by itself.

    Raises:
        UserError: if a file cannot be written.
    """
    tensors = _saved_tensors(model)
    groups = _groups(model, {name: _whole(tensor) for name, tensor in tensors.items()})
    targets = {name: tensor for group in groups for name, tensor in group.targets.items()}
    split = split_torch_state_dict_into_shards(
        targets, filename_pattern="model{suffix}.safetensors", max_shard_size=shard_size
    )
    for file, names in split.filename_to_tensors.items():
        shard = _gathered_shard(model, tensors, groups, set(names))
        on_rank_zero(partial(_write_shard, folder / file, shard, advice))
        del shard  # before the next is gathered
    if split.is_sharded:
        total = sum(_whole(parameter).numel() for parameter in model.parameters())
        metadata = {"total_parameters": total, **split.metadata}
        index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
        on_rank_zero(partial(_write_index, folder / "model.safetensors.index.json", index, advice))


def _write_shard(path: Path, weights: dict[str, Tensor], advice: str) -> None:
    with writing(path, advice):
        save_file(weights, path, metadata={"format": "pt"})


def _write_index(path: Path, index: dict[str, Any], advice: str) -> None:
    with writing(path, advice):
        path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _gathered_shard(
    model: Any, tensors: Mapping[str, Tensor], groups: list[_Group], names: set[str]
) -> dict[str, Tensor]:
    """Return a file's weights on the first rank, nothing on others. Collective."""
    shard: dict[str, Tensor] = {}
    for group in groups:
        if names.isdisjoint(group.targets):
            continue
        weights = gathered_weights({name: tensors[name] for name in group.sources})
        if dist.get_rank() == 0:
            # What the next file gets of the group is gathered again.
            shard |= {
                name: alone(weight) for name, weight in group.convert(model, weights).items() if name in names
            }
        del weights  # before the next is gathered
    return shard


def gathered_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return whole weights on the first rank's CPU, nothing on others. Collective.

    Args:
        tensors: of a model, of which ZeRO-3 may have left a part to each rank.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        is_sharded = hasattr(tensor, "ds_tensor") and tensor.numel() == 0  # small ones each rank keeps whole
        whole = _gathered_parts(tensor) if is_sharded else tensor.detach()
        if whole is not None and dist.get_rank() == 0:
            found[name] = whole.cpu()
    return found


def _gathered_parts(parameter: Any) -> Tensor | None:
    """Return a parameter's whole weight on the first rank; all have parts of one size, the last padded.

    They are received where they belong. DeepSpeed's ``GatheredParameters`` makes the weight whole on every
    rank, and gloo's ``gather`` has a copy of it in buffers that stay for a while.
    """
    part: Tensor = parameter.ds_tensor.detach()
    if dist.get_rank() != 0:
        dist.send(part, 0)
        return None
    whole = part.new_empty(parameter.ds_numel)
    for rank in range(dist.get_world_size()):
        place = whole[rank * part.numel() : (rank + 1) * part.numel()]
        if rank == 0:
            place.copy_(part[: place.numel()])
        elif place.numel() == part.numel():
            dist.recv(place, rank)
        else:  # with padding, which has no place
            received = torch.empty_like(part)
            dist.recv(received, rank)
            place.copy_(received[: place.numel()])
    return whole.view(parameter.ds_shape)


def _saved_tensors(model: Any) -> dict[str, Tensor]:
    """Return the parameters and buffers that are saved; those that are tied have each of their names."""
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    for name, value in model.state_dict().items():
        tensors.setdefault(name, value)
    for name in model._keys_to_ignore_on_save or ():
        tensors.pop(name, None)
    return tensors


def _whole(tensor: Tensor) -> Tensor:
    """Return a tensor without data, of the shape that all ranks have together."""
    return torch.empty(getattr(tensor, "ds_shape", tensor.shape), dtype=tensor.dtype, device="meta")


def alone(tensor: Tensor) -> Tensor:
    """Return a tensor that keeps no more alive than itself."""
    tensor = tensor.contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


class _Provenance(TorchFunctionMode):
    """Follows which tensors others are computed from.

    Args:
        tensors: that all others come from, by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        super().__init__()
        self._names = {id(tensor): frozenset([name]) for name, tensor in tensors.items()}
        self._alive: list[Tensor] = []  # so that no id comes twice

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and note what its results come from."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        names = frozenset[str]().union(*(self.of(tensor) for tensor in tree_leaves((args, kwargs))))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._alive.append(tensor)
                self._names[id(tensor)] = self._names.get(id(tensor), frozenset()) | names
        return result

    def of(self, tensor: Any) -> frozenset[str]:
        """Return the names of what a tensor comes from."""
        return self._names.get(id(tensor), frozenset())


def _groups(model: Any, weights: dict[str, Tensor]) -> list[_Group]:
    """Return which weights of the model become which of its files, in their order.

    Args:
        model: of transformers, which may have other names and shapes in its files.
        weights: of the model, without data.
    """
    weights = remove_tied_weights_from_state_dict(weights, model)
    with _Provenance(weights) as provenance:
        converted = revert_weight_conversion(model, dict(weights))
    groups: list[_Group] = []
    inseparable = _Group((), {}, False)
    for names, targets in _connected({name: provenance.of(tensor) for name, tensor in converted.items()}):
        sources = tuple(name for name in weights if name in names)
        is_renaming = len(sources) == len(targets) == 1 and converted[targets[0]] is weights[sources[0]]
        group = _Group(sources, {name: _whole(converted[name]) for name in targets}, is_renaming)
        if is_renaming or _is_separable(model, weights, group):
            groups.append(group)
        else:
            both = inseparable.targets | group.targets
            inseparable = _Group((*inseparable.sources, *group.sources), both, False)
    return [*groups, inseparable] if inseparable.sources else groups


def _connected(sources: Mapping[str, frozenset[str]]) -> list[tuple[set[str], list[str]]]:
    """Return sources and targets that belong together, since they have a source or a target in common."""
    found: dict[str, tuple[set[str], list[str]]] = {}
    for target, names in sources.items():
        merged: tuple[set[str], list[str]] = (set(names), [target])
        for group in {id(found[name]): found[name] for name in names if name in found}.values():
            merged = (merged[0] | group[0], group[1] + merged[1])
        found |= dict.fromkeys(merged[0], merged)
    return list({id(group): group for group in found.values()}.values())


def _is_separable(model: Any, weights: Mapping[str, Tensor], group: _Group) -> bool:
    """Return whether the group's weights become those of the files without the model's others."""
    try:
        converted = group.convert(model, {name: weights[name] for name in group.sources})
    except Exception:  # of any operation of transformers that misses one
        return False
    shapes = {name: tensor.shape for name, tensor in converted.items()}
    return shapes == {name: tensor.shape for name, tensor in group.targets.items()}
