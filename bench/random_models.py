"""Write folders of models of known shapes with random weights, for what depends on sizes alone: memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_random(make: Callable[[], Any], folder: Path, shard: int = 400_000_000) -> None:
    """Write bfloat16 weights that repeat a random block; vectors are ones. One file is in memory at a time.

    Args:
        make: returns the model of transformers; called where nothing is allocated.
        folder: a new one.
        shard: bytes after which a file ends.
    """
    import torch
    from safetensors.torch import save_file

    with torch.device("meta"):
        model = make().to(torch.bfloat16)
    model.config.save_pretrained(folder)
    block = (torch.randn(1 << 20) * 0.02).bfloat16()
    files: dict[str, str] = {}
    weights: dict[str, torch.Tensor] = {}

    def write() -> None:
        name = f"model-{len(set(files.values())):05d}.safetensors"
        save_file(weights, folder / name, metadata={"format": "pt"})
        files.update(dict.fromkeys(weights, name))
        weights.clear()

    for name, p in model.named_parameters():
        whole = block.repeat(-(-p.numel() // block.numel()))[: p.numel()].view(p.shape)
        weights[name] = whole if p.ndim > 1 else torch.ones(p.shape, dtype=torch.bfloat16)
        if sum(each.nbytes for each in weights.values()) > shard:
            write()
    if weights:
        write()
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def tiny_llama() -> Any:
    """Return a model of TinyLlama's shape: 1.1 billion parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32000,
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=22,
            num_attention_heads=32,
            num_key_value_heads=4,
            max_position_embeddings=2048,
        )
    )


def bert_base() -> Any:
    """Return a BERT-base with its head for words: 110 million parameters."""
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig())


def qwen3(hidden: int, inner: int, layers: int, heads: int, tied: bool) -> Any:
    """Return a Qwen3 of a size, with 8 heads of keys and values as all of them up to 8B have."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=151_936,
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=tied,
            max_position_embeddings=40_960,
        )
    )
