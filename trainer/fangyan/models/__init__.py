"""Loading a pretrained model, or the same architecture at random, with the head that a task needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    ElectraForTokenClassification,
)

from fangyan.errors import UserError
from fangyan.models import electra_gguf, small_causal
from fangyan.models.packed import Layout, position_offset
from fangyan.recipe import Model

__all__ = ["comes_from_outside", "load_causal_model", "load_token_classifier", "max_length"]


def load_token_classifier(settings: Model, labels: list[str], seed: int) -> tuple[Any, Any]:
    """A token classifier in float32 and its fast tokenizer.

    Args:
        settings: the recipe's ``model``.
        labels: the tag set; the head has as many outputs.
        seed: of the head's weights, and of all weights if not pretrained.

    Raises:
        UserError: if the folder has no weights, or the hub has no such model.
    """
    torch.manual_seed(seed)
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    if settings.path == electra_gguf.NAME:
        config, tokenizer, weights = electra_gguf.read_electra(electra_gguf.find_file())
        config.update({"num_labels": len(labels), **names})
        _set_dropout(config, settings)
        model = ElectraForTokenClassification(config)
        if settings.pretrained:
            missing, unexpected = model.load_state_dict(weights, strict=False)
            assert not unexpected
            assert set(missing) == {"classifier.weight", "classifier.bias"}
        return model, tokenizer
    model, tokenizer = _load(AutoModelForTokenClassification, settings, num_labels=len(labels), **names)
    return model, tokenizer


def load_causal_model(settings: Model, seed: int) -> tuple[Any, Any]:
    """A causal language model in float32 and its fast tokenizer; arguments and errors as above."""
    torch.manual_seed(seed)
    if settings.path == small_causal.SCRATCH:
        if settings.pretrained:
            raise UserError(
                f"model.pretrained: {small_causal.SCRATCH} is a configuration without weights, expected false"
            )
        config, tokenizer = small_causal.read_scratch()
    elif settings.path == small_causal.SMOLLM2:
        config, tokenizer, weights = small_causal.read_smollm2(settings.pretrained)
    else:
        return _load(AutoModelForCausalLM, settings)
    _set_dropout(config, settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if settings.pretrained:
        model.load_state_dict(weights)
    return model, tokenizer


def comes_from_outside(settings: Model) -> bool:
    """Whether a folder or the hub holds the weights, so that others can load them by ``path``."""
    inside = (electra_gguf.NAME, small_causal.SCRATCH, small_causal.SMOLLM2)
    return settings.pretrained and settings.path not in inside


def _load(auto_class: Any, settings: Model, **config_fields: Any) -> tuple[Any, Any]:
    try:
        config = AutoConfig.from_pretrained(settings.path, **config_fields)
        # Taggers are given words: a byte-level tokenizer has to see the space before each.
        spaces = {"add_prefix_space": True} if config_fields else {}
        tokenizer = AutoTokenizer.from_pretrained(settings.path, use_fast=True, **spaces)
        _set_dropout(config, settings)
        if settings.pretrained:
            model = _from_pretrained(auto_class, settings.path, config)
        else:
            model = auto_class.from_config(config, dtype=torch.float32)
    except (OSError, ValueError, SafetensorError) as error:
        kind = "folder" if Path(settings.path).exists() else "hub name or folder"
        what = "token classifier" if config_fields else "causal language model"
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"model.path: no {what} can be loaded from the {kind} {settings.path!r}: {reason}"
        ) from None
    if not tokenizer.is_fast:
        raise UserError(f"model.path: {settings.path!r} has no fast tokenizer, expected a tokenizer.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def max_length(model: Any, requested: int | None, layout: Layout) -> int:
    """Most sub-words in a window: what the recipe says, within what the model can attend to.

    That is its number of positions; and its sliding window, where it has one and the layout is
    ``rows``: a block mask takes the place of the model's own and does not slide.
    """
    table = getattr(model.config, "max_position_embeddings", None)
    limit = table - position_offset(model) if table and table > 0 else 512
    sliding = getattr(model.config, "sliding_window", None)
    if sliding and layout == "rows":
        limit = min(limit, sliding)
    if requested is None:
        return limit
    if requested > limit:
        raise UserError(f"model.max_length: {requested}, but the model takes {limit} sub-words at most")
    return requested


def _from_pretrained(auto_class: Any, path: str, config: Any) -> Any:
    # A head for another tag set is dropped; any other weight that is absent or does not fit is an error.
    model, report = auto_class.from_pretrained(
        path, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
    )
    bad = [key for key, *_ in report["mismatched_keys"]] + list(report["missing_keys"])
    body = [key for key in bad if key.startswith(f"{model.base_model_prefix}.") and "pooler" not in key]
    if body:
        raise ValueError(f"its weight {body[0]} is missing or does not fit its configuration")
    return model


def _set_dropout(config: Any, settings: Model) -> None:
    """Configurations name dropout in many ways; attention's has ``att`` in its name everywhere."""
    for key, value in config.to_dict().items():
        if not isinstance(value, float) or not ("dropout" in key or key.endswith("pdrop")):
            continue
        if "att" in key:
            setattr(config, key, settings.attention_dropout)
        elif settings.hidden_dropout is not None:
            setattr(config, key, settings.hidden_dropout)


# Loading a model prints a progress bar and a table of keys; the run says what matters.
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
