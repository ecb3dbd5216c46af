"""A causal model adapted with LoRA: PEFT in a plain transformers model, and the same with fangyan's kernels.

Rows of tokens of HKCanCor behind one another, without padding; LoRA of rank 16 with dropout 0.05 on every
linear layer but the head, frozen random weights (whole or in 4 bits), and the same optimizer. Only the
computation of the adapted layers, and of head and loss, differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config

from fangyan_bench.harness.machine import device
from fangyan_bench.steps.common import Observe, StepImplementation, rows_of_tokens, shuffled_rows
from fangyan_bench.trainer_access import (
    IGNORE_INDEX,
    BenchmarkSetup,
    add_lora,
    head_loss,
    install_loss_head,
    quantize_nf4,
)


@dataclass(frozen=True)
class Size:
    """A configuration of Qwen3, and the data of one step.

    Attributes:
        config: fields of ``Qwen3Config``.
        length: tokens of a row.
        rows: rows of a step.
        base: ``nf4`` for 4-bit weights.
        device: where it is timed.
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
BASELINE, OURS = "PEFT", "fangyan"


def sizes() -> list[str]:
    """Return the sizes for this machine."""
    return [name for name, size in SIZES.items() if size.device == device()]


def build(config: Qwen3Config, dtype: torch.dtype, base: str | None) -> Any:
    """Build a model with random weights layer by layer: of 4-bit ones, no more than one is ever whole."""
    layers, config.num_hidden_layers = config.num_hidden_layers, 1
    with torch.device(device()):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
        stack = model.get_decoder().layers
        for index in range(layers):
            if index:
                layer = type(stack[0])(config, index).to(dtype)
                layer.apply(model._init_weights)
                stack.append(layer)
            if base == "nf4":
                quantize_nf4(model, dtype)
    config.num_hidden_layers = layers
    return model


class LoraLm:
    """A Qwen3 with random frozen weights and an adapter in ``torch.optim.AdamW``."""

    steps = 1  # of one sample

    def __init__(self, setup: BenchmarkSetup, size: Size, fused: bool, dropout: float = 0.05):
        torch.manual_seed(0)
        config = Qwen3Config(**{"vocab_size": len(setup.tokenizer), **size.config})
        dtype = torch.bfloat16 if setup.bf16 else torch.float32
        model = build(config, dtype, size.base)
        self.model: Any = add_lora(model, dropout, dtype, "auto" if fused else "reference")
        self.model.train()
        if size.device == "cuda":
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
            model.enable_input_require_grads()
        self._head = install_loss_head(self.model, config.vocab_size, "auto") if fused else None
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in self.trained:
            parameter.data = parameter.data.to(dtype)
        self._optimizer = torch.optim.AdamW(self.trained, lr=1e-4)
        rows = rows_of_tokens(setup, size.length)
        self.batches = shuffled_rows(rows, size.rows, torch.Generator().manual_seed(0))

    def loss(self, input_ids: Tensor) -> Tensor:
        """Return the mean loss of predicting every next token, ()."""
        input_ids = input_ids.to(device())
        if self._head is None:
            loss: Tensor = self.model(input_ids=input_ids, labels=input_ids, use_cache=False).loss
            return loss
        labels = torch.nn.functional.pad(input_ids[:, 1:], (0, 1), value=IGNORE_INDEX)
        with head_loss(self._head, labels, input_ids.numel() - len(input_ids)):
            fused: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return fused

    def train(self, steps: int | None, observe: Observe) -> None:
        """Take some steps, or those until ``observe`` returns True."""
        assert steps is not None
        for _ in range(steps):
            input_ids = next(self.batches)
            self.loss(input_ids).backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
            if observe(input_ids.numel(), len(input_ids)):
                return


def check_agreement(setup: BenchmarkSetup) -> None:
    """Assert the same loss and gradients by PEFT and by fangyan, without dropout, which drops at random."""
    plain, fused = (LoraLm(setup, SIZES["small"], fused, dropout=0.0) for fused in (False, True))
    for step in (plain, fused):
        with torch.no_grad():
            generator = torch.Generator().manual_seed(1)
            for parameter in step.trained:  # a B of zeros hides every mistake
                noise = 0.05 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise.to(parameter.device))
    batch = next(plain.batches)
    losses = [step.loss(batch) for step in (plain, fused)]
    for loss in losses:
        loss.backward()
    rtol = 1e-2 if setup.bf16 else 1e-5
    torch.testing.assert_close(losses[1], losses[0], rtol=rtol, atol=1e-5, check_dtype=False)
    for left, right in zip(plain.trained, fused.trained, strict=True):
        assert left.grad is not None
        assert right.grad is not None
        assert left.grad.abs().sum() > 0
        error = (left.grad - right.grad).float().norm() / left.grad.float().norm()
        assert error < (0.1 if setup.bf16 else 1e-3), error


def implementations(size: str) -> dict[str, StepImplementation]:
    """Return the implementations for a size of model."""
    return {
        BASELINE: StepImplementation("baseline", partial(LoraLm, size=SIZES[size], fused=False)),
        OURS: StepImplementation("ours", partial(LoraLm, size=SIZES[size], fused=True)),
    }
