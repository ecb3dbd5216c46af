"""Tiny random configurations of the model families that dialect data meets, and the layout of each."""

from collections.abc import Callable
from dataclasses import dataclass

import transformers
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, PreTrainedTokenizerFast

VOCABULARY = 96
WINDOW = 24

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    # Large enough for a leak to be seen.
    "initializer_range": 0.1,
}
_HEADS = {"num_key_value_heads": 2, "head_dim": 8}
_GROUPED = {"num_key_value_heads": 2}
_WINDOWED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_DELTA = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
_MAMBA2 = {"mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_T5 = {"vocab_size": VOCABULARY, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        name: for people.
        config: makes its configuration, of a class of transformers and its fields.
        layout: of its batches on a CPU.
        causal: whether it is trained as a language model here; otherwise as a tagger.
    """

    name: str
    config: Callable[[], transformers.PreTrainedConfig]
    layout: str
    causal: bool = True

    @property
    def auto_model(self):
        return AutoModelForCausalLM if self.causal else AutoModelForTokenClassification


def _family(name, layout, kind, causal=True, **fields):
    return Family(name, lambda: getattr(transformers, kind)(**fields), layout, causal)


def _encoder(name, layout, kind, **fields):
    return _family(name, layout, kind, causal=False, **fields)


def _sizes(**changes):
    return _SIZES | changes


def _gemma3():
    text = transformers.Gemma3TextConfig(**_SIZES, **_HEADS, **_WINDOWED)
    vision = transformers.SiglipVisionConfig(image_size=16, patch_size=8, **_VISION)
    tokens = {"boi_token_index": 90, "eoi_token_index": 91, "image_token_index": 92}
    return transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **tokens)


def _gemma4_text(**fields):
    return transformers.Gemma4TextConfig(
        **_SIZES,
        **_HEADS,
        **_WINDOWED,
        global_head_dim=8,
        hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=VOCABULARY,
        num_kv_shared_layers=0,
        **fields,
    )


FAMILIES = [
    _family("Llama", "varlen", "LlamaConfig", **_SIZES, **_GROUPED),
    _family("Qwen 3", "varlen", "Qwen3Config", **_SIZES, **_HEADS, tie_word_embeddings=True),
    _family("Qwen 3 MoE", "varlen", "Qwen3MoeConfig", **_SIZES, **_HEADS, **_EXPERTS),
    _family("Mistral", "varlen", "MistralConfig", **_SIZES, **_HEADS, sliding_window=WINDOW),
    _family("Mixtral", "varlen", "MixtralConfig", **_SIZES, **_HEADS, num_local_experts=4),
    _family("Phi 3", "varlen", "Phi3Config", **_SIZES, **_GROUPED),
    _family("OPT", "varlen", "OPTConfig", **_sizes(ffn_dim=48, word_embed_proj_dim=32, init_std=0.1)),
    _family("GPT-NeoX", "varlen", "GPTNeoXConfig", **_SIZES),
    _family("GPT-2", "varlen", "GPT2Config", vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4),
    _family("Gemma 2", "rows", "Gemma2Config", **_SIZES, **_HEADS, **_WINDOWED),
    Family("Gemma 3", _gemma3, "varlen"),
    _family("gpt-oss", "rows", "GptOssConfig", **_SIZES, **_HEADS, **_WINDOWED, num_local_experts=4),
    _family("Llama 4", "rows", "Llama4TextConfig", **_SIZES, **_HEADS, attention_chunk_size=16),
    _family("Falcon", "rows", "FalconConfig", **_SIZES),
    _family("BLOOM", "padded", "BloomConfig", **_sizes(n_layer=2, n_head=4)),
    _family("MPT", "padded", "MptConfig", vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4),
    _family("Qwen 3.5", "padded", "Qwen3_5TextConfig", **_SIZES, **_HEADS, **_DELTA),
    _family(
        "Qwen3-Next",
        "padded",
        "Qwen3NextConfig",
        **_SIZES,
        **_HEADS,
        **_DELTA,
        **_EXPERTS,
        shared_expert_intermediate_size=16,
    ),
    _family("OLMo-hybrid", "padded", "OlmoHybridConfig", **_SIZES, **_DELTA, num_key_value_heads=4),
    _family("LFM 2", "padded", "Lfm2Config", **_SIZES, **_GROUPED, layer_types=["conv", "full_attention"]),
    _family("Mamba", "padded", "MambaConfig", **_SIZES, state_size=8),
    _family(
        "Mamba 2",
        "padded",
        "Mamba2Config",
        **_sizes(state_size=8, num_heads=8, head_dim=8, n_groups=1, chunk_size=8),
    ),
    _family("Falcon-Mamba", "padded", "FalconMambaConfig", **_SIZES, state_size=8),
    _family(
        "Jamba",
        "padded",
        "JambaConfig",
        **_SIZES,
        **_GROUPED,
        num_experts=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
    ),
    _family(
        "Bamba",
        "padded",
        "BambaConfig",
        **_SIZES,
        **_GROUPED,
        **_MAMBA2,
        attn_layer_indices=[1],
        mamba_n_heads=8,
    ),
    _family("RWKV", "padded", "RwkvConfig", **_sizes(context_length=512)),
    # Their logits are scaled or capped behind the head.
    _family("Cohere, Aya", "varlen", "CohereConfig", **_SIZES, **_GROUPED),
    _family("Cohere 2", "varlen", "Cohere2Config", **_SIZES, **_HEADS, **_WINDOWED),
    _family("Granite", "varlen", "GraniteConfig", **_SIZES, **_GROUPED, logits_scaling=8.0),
    Family(
        "Gemma 4",
        lambda: _gemma4_text(final_logit_softcapping=2.0),
        "varlen",
    ),
    _family(
        "RecurrentGemma",
        "padded",
        "RecurrentGemmaConfig",
        **_sizes(num_hidden_layers=3, num_key_value_heads=1, lru_width=32, attention_window_size=WINDOW),
    ),
    _family(
        "Granite-hybrid",
        "padded",
        "GraniteMoeHybridConfig",
        **_SIZES,
        **_GROUPED,
        **_MAMBA2,
        num_local_experts=2,
        num_experts_per_tok=1,
        shared_intermediate_size=32,
        mamba_n_heads=8,
        layer_types=["mamba", "attention"],
        logits_scaling=8.0,
    ),
    _family(
        "Falcon-H1",
        "padded",
        "FalconH1Config",
        **_SIZES,
        **_HEADS,
        **_MAMBA2,
        mamba_d_ssm=32,
        mamba_n_heads=4,
        lm_head_multiplier=0.3,
    ),
    _encoder("BERT", "varlen", "BertConfig", **_SIZES),
    _encoder("ELECTRA", "varlen", "ElectraConfig", **_SIZES, embedding_size=16),
    _encoder("XLM-RoBERTa", "varlen", "XLMRobertaConfig", **_sizes(pad_token_id=1, type_vocab_size=1)),
    _encoder(
        "DistilBERT", "varlen", "DistilBertConfig", **_sizes(dim=32, hidden_dim=48, n_layers=2, n_heads=4)
    ),
    _encoder("ALBERT", "varlen", "AlbertConfig", **_SIZES, embedding_size=16),
    _encoder("EuroBERT", "varlen", "EuroBertConfig", **_SIZES, **_GROUPED, mask_token_id=3),
    _encoder(
        "ModernBERT",
        "varlen",
        "ModernBertConfig",
        **_SIZES,
        local_attention=2 * WINDOW,
        layer_types=["full_attention", "sliding_attention"],
        cls_token_id=3,
        sep_token_id=4,
    ),
    _encoder("MPNet", "padded", "MPNetConfig", **_sizes(pad_token_id=1)),
    _encoder("RemBERT", "padded", "RemBertConfig", **_SIZES, input_embedding_size=16),
    _encoder(
        "DeBERTa", "padded", "DebertaConfig", **_SIZES, relative_attention=True, pos_att_type=["c2p", "p2c"]
    ),
    _encoder(
        "DeBERTa v3",
        "padded",
        "DebertaV2Config",
        **_SIZES,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        position_buckets=16,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
    ),
    _encoder("T5", "padded", "T5Config", **_T5),
    _encoder("UMT5", "padded", "UMT5Config", **_T5),
    _encoder("ConvBERT", "unpadded", "ConvBertConfig", **_SIZES, embedding_size=16),
    _encoder("FNet", "unpadded", "FNetConfig", **_SIZES),
    _encoder(
        "Funnel",
        "unpadded",
        "FunnelConfig",
        vocab_size=VOCABULARY,
        d_model=32,
        n_head=4,
        d_head=8,
        d_inner=48,
        block_sizes=[1, 1],
    ),
]

BY_NAME = {family.name: family for family in FAMILIES}


def save(family, folder, auto_model=None, **fields):
    """Write a family's tiny model and a tokenizer of words ``w0``, ``w1``, … to a folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers

    config = family.config()
    for key, value in config.get_text_config().to_dict().items():
        if isinstance(value, float) and "dropout" in key:
            setattr(config.get_text_config(), key, 0.0)
    for key, value in fields.items():
        setattr(config, key, value)
    if "num_hidden_layers" in fields and getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    torch.manual_seed(0)
    model = (auto_model or family.auto_model).from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    padding = getattr(config.get_text_config(), "pad_token_id", None) or 0
    words = [f"w{i}" for i in range(VOCABULARY)]
    words[padding] = "[PAD]"
    words[2:8] = "[UNK]", "[EOS]", "[MASK]", "user", "assistant", "system"
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        eos_token="[EOS]",
        mask_token="[MASK]",
    )
    tokenizer.save_pretrained(folder)
    return model.eval()
