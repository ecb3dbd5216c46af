"""What a transformers model is made of, found by module type, never by its name."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fangyan.errors import UserError


def num_outputs(model: Any) -> int:
    """Return the outputs of the model's head: its vocabulary, or its labels."""
    output = model.get_output_embeddings()
    output = getattr(output, "original_module", output)  # PEFT's layer around a head has it inside
    return output.out_features if isinstance(output, nn.Linear) else int(model.config.num_labels)


def head_name(model: Any, outputs: int) -> str:
    """Return the name of the ``nn.Linear`` with ``outputs`` outputs that produces the model's logits.

    Where there are several such layers it is the last that a forward calls.

    Raises:
        UserError: if it has none.
    """
    names = {
        module: str(name)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == outputs
    }
    if not names:
        raise UserError(f"model.path: {type(model).__name__} has no linear head with {outputs} outputs")
    called = list(names)
    if len(names) > 1:
        hooks = [module.register_forward_pre_hook(lambda layer, _: called.append(layer)) for module in names]
        with _inputs_cast(model):
            try_forward(model)
        for hook in hooks:
            hook.remove()
    return names[called[-1]]


@contextmanager
def _inputs_cast(model: nn.Module) -> Iterator[None]:
    """Cast what linear layers take: before weights are cast, a new head's dtype is not that of the files."""

    def cast(layer: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        dtype = layer.weight.dtype
        return (inputs[0].to(dtype), *inputs[1:]) if dtype.is_floating_point else inputs

    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_pre_hook(cast) for module in linears]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def try_forward(model: Any, gradients: bool = False) -> None:
    """Run a forward on a few sub-words; see :func:`evaluating`."""
    with evaluating(model, gradients):  # some models pool by 8 before they attend
        model(input_ids=torch.zeros(1, 16, dtype=torch.int64, device=model.device))


@contextmanager
def evaluating(model: nn.Module, gradients: bool = False) -> Iterator[None]:
    """Run forwards without dropout, whose random numbers are a run's own, and as a rule without gradients."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.set_grad_enabled(gradients):
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def encoder_layers(model: Any, field: str) -> nn.ModuleList:
    """Return the model's stack of layers: its longest list of modules.

    Raises:
        UserError: naming the recipe's field that asks for layers, if there is none.
    """
    modules = text_part(model).modules()
    stacks = [module for module in modules if isinstance(module, nn.ModuleList) and len(module)]
    if not stacks:
        raise UserError(f"{field}: {type(model).__name__} has no stack of layers")
    return max(stacks, key=len)


def linear_layers(model: Any, skip: Collection[str]) -> dict[str, nn.Module]:
    """Return the linear layers before the head that are called, by name; GPT-2's are transposed: ``Conv1D``.

    A state-space layer calls its first alone: its kernels read the weights of the others themselves, where
    an adapter or packed weights are never seen. A router of experts returns more than a product. Poolers
    come after the logits, if at all.

    Args:
        model: of transformers.
        skip: modules to leave out.
    """
    output = model.get_output_embeddings()
    layers = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D) or module is output or is_in(name, skip):
            continue
        if "pooler" in name.split("."):
            continue
        parent, _, attribute = name.rpartition(".")
        mixer = model.get_submodule(parent)
        if attribute == "in_proj" or not (hasattr(mixer, "A_log") and hasattr(mixer, "D")):
            layers[name] = module
    own = "transformers.models."  # where a model overrides what a linear layer does
    unusual = [module for module in layers.values() if type(module).forward.__module__.startswith(own)]
    routers = _other_outputs(model, unusual)
    return {name: module for name, module in layers.items() if module not in routers}


def _other_outputs(model: Any, modules: list[nn.Module]) -> set[nn.Module]:
    """Return those of some modules whose output is no tensor."""
    others: set[nn.Module] = set()

    def see(module: nn.Module, _: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            others.add(module)

    if modules:
        hooks = [module.register_forward_hook(see) for module in modules]
        with _inputs_cast(model):
            try_forward(model)
        for hook in hooks:
            hook.remove()
    return others


def text_part(model: Any) -> Any:
    """Return the part of a model that reads text: of a composite one (images, sound) not the rest.

    Args:
        model: of transformers, or around one.
    """
    configured = [module for module in model.modules() if hasattr(module, "config")]
    if not configured:
        return model
    config = configured[0].config.get_text_config()
    if config is configured[0].config:
        return model
    return next((module for module in configured if module.config is config), model)


def is_causal(model: Any) -> bool:
    """Return whether the attention layers look back only: every one says so by ``is_causal``.

    Without such layers (state-space models, old ones) it is a model that can generate.
    """
    flags = _causal_flags(model)
    if not flags:
        return bool(model.can_generate())
    return bool(getattr(model.config, "is_decoder", False)) or all(flags)


def looks_ahead(model: Any) -> bool:
    """Return whether some attention layer sees what follows a sub-word."""
    return not getattr(model.config, "is_decoder", False) and not all(_causal_flags(model))


def _causal_flags(model: Any) -> list[bool]:
    flags = (getattr(module, "is_causal", None) for module in text_part(model).modules())
    return [flag for flag in flags if isinstance(flag, bool)]


def position_offset(model: Any) -> int:
    """Return a sequence's first position: RoBERTa's tables start behind their padding row."""
    for name, module in text_part(model).named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def max_length(model: Any, requested: int | None) -> int:
    """Return the most sub-words of a sequence: what the recipe says, within the model's positions.

    Args:
        model: the transformers model.
        requested: the recipe's ``model.max_length``.

    Raises:
        UserError: if more is requested than the model takes.
    """
    table = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limit = table - position_offset(model) if table and table > 0 else 512
    if requested is None:
        return int(limit)
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
    modules = {name.rpartition(".")[0] for name in names} | ({new_head} if new_head else set())
    # Not those inside another.
    return sorted(module for module in modules if not is_in(module, modules - {module}))


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
