"""A causal model adapted with LoRA: PEFT in a plain transformers model, and the same with fangyan's kernels.

Rows of tokens of HKCanCor behind one another, without padding; LoRA of rank 16 with dropout 0.05 on every
linear layer but the head, frozen random weights (whole or in 4 bits), and the same optimizer. What differs is
who computes the adapted layers, and head and loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from fangyan.adapt.adapters import adapt, quantize
from fangyan.models.head import install_loss_head
from fangyan.recipe import Adapt
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config

from fangyan_bench.harness.machine import device
from fangyan_bench.steps.tagger import BenchmarkSetup, Observe, StepImplementation, StepTrial, load_setup


@dataclass(frozen=True)
class Size:
    """A configuration of Qwen3, and what a step takes.

    Attributes:
        base: ``nf4`` for 4-bit weights.
        length, rows: tokens of a row, rows of a step.
    """

    config: dict[str, int]
    length: int
    rows: int
    base: str | None = None
    device: str = "cpu"


_SMALL = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
_EIGHT_BILLION = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
}
SIZES = {
    "small": Size(_SMALL, 128, 16),
    "small, NF4": Size(_SMALL, 128, 16, base="nf4"),
    "8B": Size(_EIGHT_BILLION, 2048, 1, device="cuda"),
    "8B, NF4": Size(_EIGHT_BILLION, 2048, 1, base="nf4", device="cuda"),
}
PEFT, OURS = "PEFT", "fangyan"


def sizes() -> list[str]:
    """Those for this machine."""
    return [name for name, size in SIZES.items() if size.device == device()]


def build(config: Qwen3Config, dtype: torch.dtype, base: str | None) -> Any:
    """A model with random weights, a layer at a time: of 4-bit ones no more is ever whole."""
    layers, config.num_hidden_layers = config.num_hidden_layers, 1
    with torch.device(device()):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
        stack = model.get_decoder().layers
        for number in range(layers):
            if number:
                layer = type(stack[0])(config, number).to(dtype)
                layer.apply(model._init_weights)
                stack.append(layer)
            if base == "nf4":
                quantize(model, None, dtype)
    config.num_hidden_layers = layers
    return model


class LoraLm:
    """A Qwen3 with random frozen weights and an adapter in ``torch.optim.AdamW``."""

    def __init__(self, setup: BenchmarkSetup, size: Size, fused: bool, dropout: float = 0.05):
        torch.manual_seed(0)
        half = setup.recipe.engine.precision == "bf16"
        config = Qwen3Config(**{"vocab_size": len(setup.tokenizer), **size.config})
        dtype = torch.bfloat16 if half else torch.float32
        model = build(config, dtype, size.base)
        settings = Adapt(method="lora", rank=16, alpha=32.0, dropout=dropout)
        kernels = "auto" if fused else "reference"
        self.model = adapt(model, settings, "CAUSAL_LM", None, 1, kernels)  # type: ignore[arg-type]
        self.model.train()
        if size.device == "cuda":
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
            model.enable_input_require_grads()
        self._head = install_loss_head(self.model, config.vocab_size, 0.0, "auto") if fused else None
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in self.trained:
            parameter.data = parameter.data.to(dtype)
        self._optimizer = torch.optim.AdamW(self.trained, lr=1e-4)
        self.steps = 1
        ids = torch.tensor(list(chain.from_iterable(window.input_ids for window in setup.windows)))
        self._rows = ids[: len(ids) // size.length * size.length].reshape(-1, size.length)
        self._batches = self._shuffled(size.rows)

    def loss(self, input_ids: Tensor) -> Tensor:
        input_ids = input_ids.to(device())
        if self._head is None:
            loss: Tensor = self.model(input_ids=input_ids, labels=input_ids, use_cache=False).loss
            return loss
        # As transformers: each target is the next token.
        targets = torch.nn.functional.pad(input_ids[:, 1:], (0, 1), value=-100)
        labelled = input_ids.numel() - len(input_ids)
        with self._head.computing_loss(targets, labelled, labelled):
            head_loss: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return head_loss

    def train(self, steps: int | None, observe: Observe) -> None:
        assert steps is not None
        for _ in range(steps):
            input_ids = next(self._batches)
            self.loss(input_ids).backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
            if observe(input_ids.numel(), len(input_ids)):
                return

    def _shuffled(self, rows: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        while True:
            order = torch.randperm(len(self._rows), generator=generator)
            for chosen in order.split(rows)[:-1]:
                yield self._rows[chosen]


def check_agreement(setup: BenchmarkSetup) -> None:
    """The same loss and gradients by PEFT and by fangyan, without dropout, whose draws differ."""
    small = SIZES["small"]
    plain, fused = (LoraLm(setup, small, fused, dropout=0.0) for fused in (False, True))
    for step in (plain, fused):
        with torch.no_grad():
            generator = torch.Generator().manual_seed(1)
            for parameter in step.trained:  # a B of zeros hides every mistake
                noise = 0.05 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise.to(parameter.device))
    batch = next(plain._batches)
    losses = [step.loss(batch) for step in (plain, fused)]
    for loss in losses:
        loss.backward()
    half = setup.recipe.engine.precision == "bf16"
    torch.testing.assert_close(
        losses[1], losses[0], rtol=1e-2 if half else 1e-5, atol=1e-5, check_dtype=False
    )
    for left, right in zip(plain.trained, fused.trained, strict=True):
        assert left.grad is not None
        assert right.grad is not None
        assert left.grad.abs().sum() > 0
        error = (left.grad - right.grad).float().norm() / left.grad.float().norm()
        assert error < (0.1 if half else 1e-3), error


def implementations(size: str) -> dict[str, StepImplementation]:
    return {
        PEFT: StepImplementation("baseline", lambda setup: LoraLm(setup, SIZES[size], fused=False)),
        OURS: StepImplementation("ours", lambda setup: LoraLm(setup, SIZES[size], fused=True)),
    }


def open_implementation(implementation: str, recipe: str) -> StepTrial:
    """``recipe``: the size of the model, a bar, and what ``load_setup`` takes."""
    size, _, rest = recipe.partition("|")
    return StepTrial(implementations(size)[implementation], load_setup(rest))
