"""A step's sentences through one encoder layer: padded, and packed side by side.

S sentences of HKCanCor, H hidden. From the token lists to the loss and its gradients: laying out,
attention, the layer and the head. What is compared is the layout; model, tokens and loss are the
same.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from fangyan.data.encode import IGNORE, Window
from fangyan.data.hkcancor import corpus_folder, read_conversation
from fangyan.data.packing import collate
from fangyan.models.packed import Layout, PackedModel
from torch import Tensor, nn
from transformers import BertConfig, BertForTokenClassification

from fangyan_bench.harness.op import Cost, ExpectedSpeedup, Implementation, Inputs, Op, Shape

CLASSES, PAD = 9, 0
PADDED_LENGTH = 128

SHAPES = (
    Shape("layer", {"S": 64, "H": 256}, quick=True),
    Shape("layer", {"S": 128, "H": 768}),
    Shape("layer", {"S": 4096, "H": 768}, "cuda", torch.bfloat16, quick=True),
)


@cache
def lengths() -> list[int]:
    """Sub-words of every utterance, with the two special tokens."""
    files = sorted(corpus_folder().glob("*.cha"))
    return [len(example.tokens) + 2 for path in files for example in read_conversation(path, characters=True)]


def sentences(count: int, seed: int) -> list[Window]:
    """Real lengths, drawn tokens and targets: what is in them costs nothing."""
    rng = random.Random(seed)
    windows = []
    for length in rng.choices([length for length in lengths() if length <= PADDED_LENGTH], k=count):
        ids = [rng.randrange(1, 1000) for _ in range(length)]
        targets = [IGNORE, *(rng.randrange(CLASSES) for _ in range(length - 2)), IGNORE]
        windows.append(Window(ids, list(range(1, length - 1)), 0, (0, length - 2), targets))
    return windows


def build(shape: Shape) -> Any:
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
    def weight(name: str, like: Tensor) -> nn.Parameter:
        noise = 0.02 * torch.randn(like.shape, generator=generator, device=shape.device)
        one = name.endswith("LayerNorm.weight")
        # A shift of every key changes no softmax: its gradient is rounding, and compares with nothing.
        return nn.Parameter((noise + one).to(shape.dtype), requires_grad=not name.endswith("key.bias"))

    weights = [weight(name, like) for name, like in build(shape).named_parameters()]
    return sentences(shape["S"], generator.initial_seed()), *weights


def loaded(shape: Shape, weights: tuple[Tensor, ...]) -> Any:
    """The model around these very weights, so that their gradients can be compared."""
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
    def prepare(shape: Shape, values: Inputs) -> Callable[[], Tensor]:
        windows, *weights = values
        packed = PackedModel(loaded(shape, tuple(weights)), CLASSES, name)
        return lambda: packed(collate(windows, PAD, packed.row_width).to(torch.device(shape.device)))

    return prepare


def padded_to_128(shape: Shape, values: Inputs) -> Callable[[], Tensor]:
    """What the usual tutorial does."""
    windows, *weights = values
    model = loaded(shape, tuple(weights))

    def call() -> Tensor:
        ids = torch.full((len(windows), PADDED_LENGTH), PAD)
        targets = torch.full((len(windows), PADDED_LENGTH), IGNORE)
        for row, window in enumerate(windows):
            ids[row, : len(window.input_ids)] = torch.tensor(window.input_ids)
            targets[row, : len(window.targets)] = torch.tensor(window.targets)
        ids, targets = ids.to(shape.device), targets.to(shape.device)
        logits = model(input_ids=ids, attention_mask=(ids != PAD).long()).logits
        return torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), reduction="sum"
        )

    return call


def reference(windows: list[Window], *weights: Tensor) -> Tensor:
    shape = Shape("truth", {"S": len(windows), "H": weights[0].shape[1]}, weights[0].device.type)
    return layout("padded")(shape, (windows, *weights))()


def cost(shape: Shape, pass_name: str) -> Cost:
    """Products with the layer's weights over the real tokens alone; weights and gradients moved once."""
    weights, tokens = 12.0 * shape["H"] ** 2, shape["S"] * sum(lengths()) / len(lengths())
    passes = {"forward": 1, "backward": 2, "forward+backward": 3}[pass_name]
    element = torch.empty((), dtype=shape.dtype).element_size()
    return Cost(bytes=passes * element * weights, flops=passes * 2.0 * tokens * weights)


OP = Op(
    name="packing",
    shapes=SHAPES,
    inputs=inputs,
    reference=reference,
    implementations=(
        Implementation("padded to 128", "baseline", padded_to_128),
        Implementation("padded to the longest", "baseline", layout("padded")),
        # Held by the norm, 6.5e-7 as measured: most terms of the baseline's sums are zeros, of padding, which
        # round nothing. By the largest error it misses twice the baseline's by 2%, in one of 65,536 elements.
        Implementation("fangyan rows", "ours", layout("rows"), tolerance=1e-6),
        Implementation("fangyan variable-length", "ours", layout("varlen")),
    ),
    cost=cost,
    scaling={"S": (16, 32, 64, 128)},
    claims=(ExpectedSpeedup("fangyan rows", "layer", "forward+backward", 3.0),),
)
