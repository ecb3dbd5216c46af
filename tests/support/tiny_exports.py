"""Folders of tiny models as fangyan exports them, made without training."""

import torch
from fangyan.data.example import Example
from fangyan.data.splits import write_examples
from fangyan.distributed.process_group import start_distributed
from fangyan.inference.export import export
from fangyan.tasks.causal_lm.task import CausalLM
from fangyan.tasks.instruction.task import Instruction
from fangyan.tasks.sequence_classification.task import SequenceClassification
from fangyan.tasks.token_classification.task import TokenClassification
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

CHARACTERS = "我你佢食飯飲茶今日去街"
LABELS = ["B-n", "I-n", "B-v", "I-v"]
_SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def tokenizer():
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS]
    return BertTokenizerFast(vocab={piece: i for i, piece in enumerate(pieces)})


def tagger(folder):
    """A tagger of characters at random weights."""
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    config = BertConfig(vocab_size=5 + len(CHARACTERS), max_position_embeddings=64, **_SIZES, **names)
    task = TokenClassification(LABELS, "segmentation", "characters", subword="first")
    return _write(folder, BertForTokenClassification(config), task)


def classifier(folder, classes=("question", "statement"), kind="single_label_classification", pairs=False):
    """A classifier of texts at random weights."""
    names = {"id2label": dict(enumerate(classes)), "label2id": {label: i for i, label in enumerate(classes)}}
    sizes = {"vocab_size": 5 + len(CHARACTERS), "max_position_embeddings": 64, **_SIZES}
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**sizes, **names, problem_type=kind))
    return _write(folder, model, SequenceClassification(list(classes), kind, pairs, "first"))


def tagged_run(folder):
    """A run folder of a tagger, with a dev split: what an export is compared on."""
    tagger(folder / "model")
    (folder / "recipe.yaml").write_text("data: {format: conll}\n", encoding="utf-8")
    texts = ["我食飯", "你飲茶", "佢今日去街", "我哋今日去飲茶"]
    examples = [
        Example({"tokens": tuple(text), "tags": ("B-n",) + ("I-v",) * (len(text) - 1)}, f"dev:{i}", str(i))
        for i, text in enumerate(texts)
    ]
    write_examples(folder / "splits" / "dev.jsonl", examples)
    return folder


def pair_classifier(folder, pooling="auto"):
    """A classifier of pairs at random weights."""
    config = BertConfig(
        vocab_size=5 + len(CHARACTERS),
        max_position_embeddings=64,
        problem_type="single_label_classification",
        id2label={0: "same", 1: "other"},
        label2id={"same": 0, "other": 1},
        **_SIZES,
    )
    model = BertForSequenceClassification(config)
    task = SequenceClassification(
        ["same", "other"], "single_label_classification", has_pairs=True, pooling=pooling
    )
    task.use_model(model, tokenizer())
    return _write(folder, model, task)


def writer(folder):
    """A language model at random weights."""
    config = Qwen3Config(
        vocab_size=5 + len(CHARACTERS),
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        **_SIZES,
    )
    return _write(folder, Qwen3ForCausalLM(config), CausalLM())


def assistant(folder, system=None):
    """An assistant at random weights, with the plain chat template."""
    backend = tokenizer()
    backend.add_special_tokens({"eos_token": "[SEP]"})
    config = Qwen3Config(
        vocab_size=len(backend), num_key_value_heads=1, head_dim=8, max_position_embeddings=64, **_SIZES
    )
    torch.manual_seed(0)
    model, task = Qwen3ForCausalLM(config), Instruction(system)
    task.use_model(model, backend)
    return _write(folder, model, task, backend)


def _write(folder, model, task, backend=None):
    inference = {"task": task.name, **task.export_config(), "layout": "padded", "max_length": 64}
    start_distributed()
    export(folder, model, backend or tokenizer(), inference, "")
    return folder
