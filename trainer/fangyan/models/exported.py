"""Loading what a run exported: a plain transformers model, or an adapter and the base that it names."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

from fangyan.adapt.adapters import dequantize, fuse, quantize
from fangyan.errors import UserError
from fangyan.models.head import head_name


def load_exported(folder: Path, mergeable: bool = False) -> tuple[Any, Any, dict[str, Any]]:
    """The model (PEFT's, where it is an adapter), its tokenizer, and what the run noted for prediction.

    Args:
        folder: ``model`` of a run folder, or a copy of it.
        mergeable: gives a 4-bit base as plain matrices of the same values.

    Raises:
        UserError: naming what is missing or cannot be read.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no exported model in it, expected a finished run or its model folder")
    try:
        config = AutoConfig.from_pretrained(folder)
        notes = getattr(config, "fangyan", None)
        if notes is None:
            raise UserError(
                f"{folder}/config.json: no field 'fangyan', expected a model that fangyan exported"
            )
        causal = notes["task"] == "language_modelling"
        kind = AutoModelForCausalLM if causal else AutoModelForTokenClassification
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if not (folder / "adapter_config.json").is_file():
            return kind.from_pretrained(folder, dtype=torch.float32), tokenizer, notes
        model = _with_adapter(folder, kind, config, notes["base"] == "nf4", mergeable)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    return model, tokenizer, notes


def _with_adapter(folder: Path, kind: Any, config: Any, four_bit: bool, mergeable: bool) -> Any:
    from peft import PeftModel

    base_path = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    base = kind.from_pretrained(base_path, config=config, dtype=torch.float32, ignore_mismatched_sizes=True)
    if four_bit:
        causal = kind is AutoModelForCausalLM
        quantize(base, None if causal else head_name(base, config.num_labels), torch.float32)
        if mergeable:
            dequantize(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # as in adapt
        model = PeftModel.from_pretrained(base, folder)
    if not mergeable:
        fuse(model)
    return model
