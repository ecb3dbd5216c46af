"""A step's sentences through one encoder layer: padded, and packed side by side.

S sentences of HKCanCor, H hidden. From the token lists to the loss and its gradients: laying out, attention,
the layer and the head. What is compared is the layout; model, tokens and loss are the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForTokenClassification

from fangyan_bench.harness.op import Cost, ExpectedSpeedup, Implementation, Inputs, Op, Shape
from fangyan_bench.trainer_access import (
    IGNORE_INDEX,
    Layout,
    TokenizedSequence,
    hkcancor_lengths,
    packed_loss,
)

CLASSES, PAD = 9, 0
PADDED_LENGTH = 128

SHAPES = (
    Shape("layer", {"S": 64, "H": 256}, quick=True),
    Shape("layer", {"S": 128, "H": 768}),
    Shape("layer", {"S": 4096, "H": 768}, "cuda", torch.bfloat16, quick=True),
)


def sentences(count: int, seed: int) -> list[TokenizedSequence]:
    """Return sequences of real lengths with random tokens and labels, which change no time."""
    rng = random.Random(seed)
    sequences = []
    lengths = [length for length in hkcancor_lengths() if length <= PADDED_LENGTH]
    for length in rng.choices(lengths, k=count):
        ids = [rng.randrange(1, 1000) for _ in range(length)]
        labels = [IGNORE_INDEX, *(rng.randrange(CLASSES) for _ in range(length - 2)), IGNORE_INDEX]
        sequences.append(TokenizedSequence(ids, labels, 0))
    return sequences


def build(shape: Shape) -> Any:
    """Return the model without weights."""
    config = BertConfig(
        vocab_size=1000,
        hidden_size=shape["H"],
        num_hidden_layers=1,
        num_attention_heads=shape["H"] // 64,
        intermediate_size=4 * shape["H"],
        num_labels=CLASSES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.device("meta"):
        return BertForTokenClassification(config)


def inputs(shape: Shape, generator: torch.Generator) -> Inputs:
    """Return sentences and the model's weights."""

    def weight(name: str, like: Tensor) -> nn.Parameter:
        noise = 0.02 * torch.randn(like.shape, generator=generator, device=shape.device)
        one = name.endswith("LayerNorm.weight")
        # A shift of every key changes no softmax: its gradient is rounding, and compares with nothing.
        return nn.Parameter((noise + one).to(shape.dtype), requires_grad=not name.endswith("key.bias"))

    weights = [weight(name, like) for name, like in build(shape).named_parameters()]
    return sentences(shape["S"], generator.initial_seed()), *weights


def loaded(shape: Shape, weights: tuple[Tensor, ...]) -> Any:
    """Return the model around these very weights, so that their gradients can be compared."""
    model = build(shape)
    for (name, _), weight in zip(list(model.named_parameters()), weights, strict=True):
        module, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(module), attribute, weight)
    embeddings = model.bert.embeddings
    positions = torch.arange(model.config.max_position_embeddings, device=shape.device)[None]
    embeddings.register_buffer("position_ids", positions, persistent=False)
    embeddings.register_buffer("token_type_ids", torch.zeros_like(positions), persistent=False)
    return model


def layout(name: Layout) -> Callable[[Shape, Inputs], Callable[[], Tensor]]:
    """Return the ``prepare`` of one of the trainer's layouts."""

    def prepare(shape: Shape, values: Inputs) -> Callable[[], Tensor]:
        sequences, *weights = values
        loss = packed_loss(loaded(shape, tuple(weights)), name, PAD)
        return lambda: loss(sequences)

    return prepare


def padded_to_128(shape: Shape, values: Inputs) -> Callable[[], Tensor]:
    """Pad every sentence to 128 tokens, as tutorials do."""
    sequences, *weights = values
    model = loaded(shape, tuple(weights))

    def call() -> Tensor:
        ids = torch.full((len(sequences), PADDED_LENGTH), PAD)
        labels = torch.full((len(sequences), PADDED_LENGTH), IGNORE_INDEX)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence.input_ids)] = torch.tensor(sequence.input_ids)
            labels[row, : len(sequence.labels)] = torch.tensor(sequence.labels)
        ids, labels = ids.to(shape.device), labels.to(shape.device)
        logits = model(input_ids=ids, attention_mask=(ids != PAD).long()).logits
        return torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), reduction="sum"
        )

    return call


def reference(sequences: list[TokenizedSequence], *weights: Tensor) -> Tensor:
    """Return the loss with one sentence per row."""
    sizes = {"S": len(sequences), "H": weights[0].shape[1]}
    shape = Shape("reference", sizes, weights[0].device.type)
    return layout("padded")(shape, (sequences, *weights))()


def cost(shape: Shape, pass_name: str) -> Cost:
    """Count products with the layer's weights over the real tokens, weights and gradients moved once."""
    lengths = hkcancor_lengths()
    weights, tokens = 12.0 * shape["H"] ** 2, shape["S"] * sum(lengths) / len(lengths)
    passes = {"forward": 1, "backward": 2, "forward+backward": 3}[pass_name]
    element = torch.empty((), dtype=shape.dtype).element_size()
    return Cost(bytes=passes * element * weights, flops=passes * 2.0 * tokens * weights)


OP = Op(
    name="packing",
    module=__name__,
    shapes=SHAPES,
    inputs=inputs,
    reference=reference,
    implementations=(
        Implementation("padded to 128", "baseline", padded_to_128),
        Implementation("padded to the longest", "baseline", layout("padded")),
        # Held to its norm, 6.5e-7 as measured: most terms of the baseline's sums are zeros, of padding, which
        # round nothing. Its largest error exceeds twice the baseline's by 2%, in one of 65,536 elements.
        Implementation("fangyan rows", "ours", layout("rows"), tolerance=1e-6),
        Implementation("fangyan variable-length", "ours", layout("varlen")),
    ),
    cost=cost,
    scaling={"S": (16, 32, 64, 128)},
    expected_speedups=(ExpectedSpeedup("fangyan rows", "layer", "forward+backward", 3.0),),
)
