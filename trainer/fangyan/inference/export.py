"""A trained model as plain transformers files, or an adapter as PEFT's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from fangyan.models.loading import ModelConfig
from fangyan.tasks.task import Task

# The base model's folder in an adapter's export, where it is neither on the hub nor in a folder.
BASE = "base"


@dataclass(frozen=True)
class Base:
    """The model that an adapter was trained on.

    Attributes:
        config: what it was loaded by.
        task: whose head it has.
        seed: of random weights.
        new: modules that the adapter's own file has.
        fingerprint: of its weights; see :func:`fangyan.models.structure.fingerprint`.
        quantization: of its weights in training, or None.
        vocab_size: rows of its embeddings, to which a run may have added.
    """

    config: ModelConfig
    task: Task
    seed: int
    new: list[str]
    fingerprint: str
    quantization: str | None
    vocab_size: int


def export(
    folder: Path,
    model: Any,
    tokenizer: Any,
    weights: Mapping[str, Tensor],
    inference: Mapping[str, Any],
    card: str,
    base: Base | None = None,
) -> None:
    """Write ``folder`` beside itself and rename it into place.

    Args:
        folder: of the export.
        model: of transformers, or PEFT's; for its class and configuration.
        tokenizer: of transformers.
        weights: state dict of the model, or of what was trained of it.
        inference: what prediction needs beyond transformers; goes into config.json as ``fangyan``,
            which everyone else ignores.
        card: the README.md.
        base: of an adapter; None exports the whole model.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    plain = model if base is None else model.get_base_model()
    plain.config._attn_implementation = None
    plain.config.fangyan = dict(inference)
    if base is None:
        model.save_pretrained(partial, state_dict=dict(weights))
    else:
        plain.config.fangyan["base"] = {
            "fingerprint": base.fingerprint,
            "new": base.new,
            "quantization": base.quantization,
            "vocab_size": base.vocab_size,
        }
        partial.mkdir(parents=True)
        _write_adapter(partial, model, weights, _write_base(partial, base, folder))
        plain.config.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _write_adapter(folder: Path, model: Any, weights: Mapping[str, Tensor], base: str) -> None:
    from peft import get_peft_model_state_dict

    config = model.peft_config["default"]
    # The state dict is of what was trained: PEFT looks up in it what an adapter's file holds.
    adapter = get_peft_model_state_dict(model, state_dict=dict(weights), save_embedding_layers=False)
    tensors = {name: tensor.contiguous() for name, tensor in adapter.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.save_pretrained(folder)
    config.inference_mode = False


def _write_base(folder: Path, base: Base, final: Path) -> str:
    """Write a base that is neither on the hub nor in a folder; return what the adapter calls its base.

    Names are the hub's, or paths relative to the export: it can be moved, alone or with a base in a folder.
    """
    if base.config.is_on_hub_or_disk:
        path = Path(base.config.path)
        return os.path.relpath(path.resolve(), final.resolve()) if path.is_dir() else base.config.path
    # Loaded again, since the run's may be sharded or quantized.
    task = base.task
    model, tokenizer = base.config.load(
        task.auto_model, base.seed, task.model_kwargs(), task.tokenizer_kwargs
    )
    model.save_pretrained(folder / BASE)
    tokenizer.save_pretrained(folder / BASE)
    return BASE
