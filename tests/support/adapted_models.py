"""Small models of many architectures with an adapter, and batches for them."""

import copy

import torch
from fangyan.adaptation import ADAPTATIONS
from fangyan.adaptation.quantization import dequantize, quantize
from fangyan.data.packing import collate
from fangyan.data.tokenization import IGNORE_INDEX, TokenizedSequence
from fangyan.distributed.process_group import start_distributed
from fangyan.models.packed import PackedModel
from fangyan.models.structure import head_name
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    BertConfig,
    ElectraConfig,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    Qwen3Config,
    XLMRobertaConfig,
)

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 100,
    "pad_token_id": 0,
}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": 5}
HEADS = {"num_key_value_heads": 2, "head_dim": 8}
ENCODERS = {
    "bert": BertConfig(**STILL, **SMALL),
    "electra": ElectraConfig(embedding_size=16, **STILL, **SMALL),
    "xlm-roberta": XLMRobertaConfig(type_vocab_size=1, **STILL, **SMALL),
}
WIDE = SMALL | {"hidden_size": 64, "intermediate_size": 128}  # rows of whole blocks of 4-bit weights
WIDE_ENCODERS = {"electra, wide": ElectraConfig(embedding_size=64, **STILL, **WIDE)}
CAUSAL = {
    "llama": LlamaConfig(num_key_value_heads=2, **SMALL),
    "qwen3": Qwen3Config(tie_word_embeddings=True, **HEADS, **SMALL),
    "gemma2": Gemma2Config(sliding_window=64, final_logit_softcapping=2.0, **HEADS, **SMALL),
    "gemma3": Gemma3TextConfig(sliding_window=64, **HEADS, **SMALL),
}


def build(name, method, layout="rows", kernels="auto", rounded=False, **settings):
    """A packed model with an adapter, its base frozen; and the model before.

    Args:
        name: of the architecture.
        method: of adaptation.
        layout: of batches.
        kernels: implementation.
        rounded: the base is in float32, rounded to what 4 bits hold.
        settings: of the method.
    """
    torch.manual_seed(0)
    causal = name in CAUSAL
    kind = AutoModelForCausalLM if causal else AutoModelForTokenClassification
    model = kind.from_config((CAUSAL | ENCODERS | WIDE_ENCODERS)[name], dtype=torch.float32)
    classes = 60 if causal else 5
    head = None if causal else head_name(model, classes)
    before = copy.deepcopy(model)
    if rounded:
        quantize(model, [head] if head else [], torch.float32)
        dequantize(model)
    adapted = ADAPTATIONS.members[method](**settings).apply(
        model,
        peft_task_type="CAUSAL_LM" if causal else "TOKEN_CLS",
        new_head=head,
        total_steps=40,
        activation_dtype=torch.float32,
        kernels=kernels,
    )
    return PackedModel(adapted, layout, kernels), before


def batch_of(name, layout="rows"):
    generator = torch.Generator().manual_seed(1)
    sequences = []
    for i, length in enumerate((7, 1, 20, 12)):
        ids = torch.randint(1, 60, (length,), generator=generator).tolist()
        labels = [*ids[1:], IGNORE_INDEX] if name in CAUSAL else [i % 5 for i in ids]
        sequences.append(TokenizedSequence(ids, labels, i))
    return collate(sequences, 0, 0 if layout == "padded" else 32)


def train(packed, batch, steps=25, rate=2e-2, method="lora"):
    """Losses of some steps of plain AdamW."""
    start_distributed()
    adaptation = ADAPTATIONS.members[method]()
    trained = [p for p in packed.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, rate)
    losses = []
    for step in range(steps):
        loss = packed.loss(batch, float(batch.num_valid))
        loss.backward()
        adaptation.before_optimizer_step(packed.model, step)
        optimizer.step()
        adaptation.after_optimizer_step(packed.model, step)
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def randomize_adapters(packed):
    with torch.no_grad():
        for name, parameter in packed.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
