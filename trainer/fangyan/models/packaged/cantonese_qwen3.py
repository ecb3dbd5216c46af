"""A Qwen3 of 6 layers to train from random weights, with the characters of the Cantonese ELECTRA.

Its vocabulary has Latin letters and digits, but none that continue a word (``##e``): they are spelt one by
one.
"""

from __future__ import annotations

from fangyan.errors import UserError
from fangyan.models.packaged.electra import read_electra
from fangyan.models.packaged.package import PackagedModel


def read_cantonese_qwen3(pretrained: bool) -> PackagedModel:
    """Return the configuration and the ELECTRA's tokenizer: [CLS] begins a document and [SEP] ends it.

    Raises:
        UserError: if weights are wanted: there are none.
    """
    if pretrained:
        raise UserError(
            "model.pretrained: cantonese-qwen3 is a configuration without weights, expected false"
        )
    from tokenizers import Regex, decoders, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config

    electra = read_electra(pretrained=False).tokenizer
    # Characters of a text stand side by side; the ELECTRA's own class would put a space between them.
    backend = electra.backend_tokenizer
    backend.decoder = decoders.Sequence([decoders.Replace("##", ""), decoders.Fuse()])
    spelling = pre_tokenizers.Split(Regex("[A-Za-z0-9]"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([backend.pre_tokenizer, spelling])
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
    return PackagedModel(config, tokenizer, None)
