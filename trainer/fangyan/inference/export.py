"""A trained model as plain transformers files, or an adapter as PEFT's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from fangyan.distributed.process_group import on_rank_zero
from fangyan.files import RESUME, publish, writing
from fangyan.inference.shards import SHARD_SIZE, alone, gathered_weights, write_shards
from fangyan.models.loading import ModelConfig
from fangyan.progress import progress
from fangyan.tasks.task import Task

# The base model's folder in an adapter's export, where it is neither on the hub nor in a folder.
BASE = "base"
# What to do where the disk is full: nothing is trained again.
ADVICE = f"the checkpoints are whole; {RESUME}"


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


@progress("writing the model")
def export(
    folder: Path,
    model: Any,
    tokenizer: Any,
    inference: Mapping[str, Any],
    card: str,
    base: Base | None = None,
    shard_size: int = SHARD_SIZE,
) -> None:
    """Write ``folder`` beside itself and rename it into place. Collective.

    A whole model comes to the first rank in pieces (:func:`write_shards`), an adapter at once.

    Args:
        folder: of the export; an earlier one is replaced.
        model: of transformers, or PEFT's, whose trained parameters are its adapter.
        tokenizer: of transformers.
        inference: what prediction needs beyond transformers; goes into config.json as ``fangyan``,
            which everyone else ignores.
        card: the README.md.
        base: of an adapter; None exports the whole model.
        shard_size: bytes of a file's weights at most.

    Raises:
        UserError: if a file cannot be written; no part of the export stays.
    """
    partial = folder.with_name(folder.name + ".partial")
    plain = model if base is None else model.get_base_model()
    plain.config._attn_implementation = None
    plain.config.fangyan = dict(inference)
    try:
        on_rank_zero(lambda: _begin(partial, model, base is None))
        if base is None:
            write_shards(partial, model, ADVICE, shard_size)
        else:
            _write_adapter(partial, model, base, folder)
        on_rank_zero(lambda: _finish(partial, folder, tokenizer, card))
    except BaseException:
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _begin(partial: Path, model: Any, is_whole: bool) -> None:
    """Make the folder, with a whole model's configurations, whose writer removes shards that it finds."""
    shutil.rmtree(partial, ignore_errors=True)
    with writing(partial, ADVICE):
        partial.mkdir(parents=True)
        if is_whole:
            model.save_pretrained(partial, state_dict={})


def _finish(partial: Path, folder: Path, tokenizer: Any, card: str) -> None:
    with writing(partial, ADVICE):
        tokenizer.save_pretrained(partial)
        (partial / "README.md").write_text(card, encoding="utf-8")
        publish(partial, folder)


def _write_adapter(partial: Path, model: Any, base: Base, final: Path) -> None:
    trained = {
        name: parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.requires_grad
    }
    weights = gathered_weights(trained)
    model.get_base_model().config.fangyan["base"] = {
        "fingerprint": base.fingerprint,
        "new": base.new,
        "quantization": base.quantization,
        "vocab_size": base.vocab_size,
    }

    def write() -> None:
        with writing(partial, ADVICE):
            _write_adapter_files(partial, model, weights, _write_base(partial, base, final))

    on_rank_zero(write)


def _write_adapter_files(folder: Path, model: Any, weights: dict[str, Tensor], base: str) -> None:
    from peft import get_peft_model_state_dict

    config = model.peft_config["default"]
    # The state dict is of what was trained: PEFT looks up in it what an adapter's file holds.
    adapter = get_peft_model_state_dict(model, state_dict=weights, save_embedding_layers=False)
    # Each in memory of its own: DeepSpeed may have them side by side, and a file has no such tensors.
    tensors = {name: alone(tensor) for name, tensor in adapter.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.save_pretrained(folder)
    config.inference_mode = False
    model.get_base_model().config.save_pretrained(folder)


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
