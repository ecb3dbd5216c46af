"""What a transformers model is made of, found by module type, never by its name."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from fangyan.errors import UserError


def num_outputs(model: Any) -> int:
    """Return the outputs of the model's head: its vocabulary, or its labels."""
    output = model.get_output_embeddings()
    output = getattr(output, "original_module", output)  # PEFT's layer around a head has it inside
    return output.out_features if isinstance(output, nn.Linear) else int(model.config.num_labels)


def head_name(model: nn.Module, outputs: int) -> str:
    """Return the name of the model's last ``nn.Linear`` with ``outputs`` outputs.

    Raises:
        UserError: if it has none.
    """
    for name, module in reversed(list(model.named_modules())):
        if isinstance(module, nn.Linear) and module.out_features == outputs:
            return str(name)
    raise UserError(f"model.path: {type(model).__name__} has no linear head with {outputs} outputs")


def encoder_layers(model: nn.Module, field: str) -> nn.ModuleList:
    """Return the model's stack of layers: its longest list of modules.

    Raises:
        UserError: naming the recipe's field that asks for layers, if there is none.
    """
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not stacks:
        raise UserError(f"{field}: {type(model).__name__} has no stack of layers")
    return max(stacks, key=len)


def is_causal(model: Any) -> bool:
    """Return whether the attention layers look back only (every one says so by ``is_causal``)."""
    flags = _causal_flags(model)
    return bool(getattr(model.config, "is_decoder", False)) or (bool(flags) and all(flags))


def looks_ahead(model: Any) -> bool:
    """Return whether some attention layer sees what follows a sub-word."""
    return not getattr(model.config, "is_decoder", False) and not all(_causal_flags(model))


def _causal_flags(model: nn.Module) -> list[bool]:
    flags = (getattr(module, "is_causal", None) for module in model.modules())
    return [flag for flag in flags if isinstance(flag, bool)]


def position_offset(model: nn.Module) -> int:
    """Return a sequence's first position: RoBERTa's tables start behind their padding row."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def max_length(model: Any, requested: int | None, rows: bool) -> int:
    """Return the most sub-words of a sequence: what the recipe says, within what the model attends to.

    Args:
        model: the transformers model.
        requested: the recipe's ``model.max_length``.
        rows: whether a block mask takes the place of the model's own. It does not slide, so that no sequence
            may then be longer than a sliding window.

    Raises:
        UserError: if more is requested than the model takes.
    """
    table = getattr(model.config, "max_position_embeddings", None)
    limit = table - position_offset(model) if table and table > 0 else 512
    sliding = getattr(model.config, "sliding_window", None)
    if sliding and rows:
        limit = min(limit, sliding)
    if requested is None:
        return limit
    if requested > limit:
        raise UserError(f"model.max_length: {requested}, but the model takes {limit} sub-words at most")
    return requested


def num_parameters(parameter: Tensor) -> int:
    """Return the elements of a parameter; of a 4-bit one those that its bytes stand for."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())


def new_modules(model: Any, new_head: str | None) -> list[str]:
    """Return the modules whose weights are new to the model, so that an adapter has to train them whole.

    Args:
        model: of :meth:`fangyan.models.loading.ModelConfig.load`.
        new_head: a head that the task brings; None where the model's own stays frozen.

    Raises:
        UserError: if weights are new although the task brings no head: they would stay random.
    """
    names = getattr(model, "new_weights", [])
    if new_head is None and names:
        raise UserError(
            f"model.path: its weight {names[0]} is missing, expected all of {type(model).__name__}"
        )
    heads = set() if new_head is None else {new_head}
    return sorted(heads | {name.rpartition(".")[0] for name in names})


def is_in(name: str, modules: Collection[str]) -> bool:
    """Return whether a module or parameter is one of some modules, or inside one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def fingerprint(model: Any, new: Collection[str]) -> str:
    """Return a digest of a model's weights: the size of each, and 64 of its elements.

    An adapter works on the weights that it was trained on; on others of the same shape it is wrong and
    nothing says so.

    Args:
        model: of transformers, not quantized.
        new: modules to leave out, which the adapter's own file has.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not is_in(name, new):
            flat = parameter.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 64)][:64].to("cpu", torch.float32)
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:32]
