"""Masked language modelling from raw text: a plain model's whole step, and the same with fangyan's head.

Rows of 128 tokens cut from HKCanCor, 16 per step, 15% of the tokens masked (Devlin et al. 2019, arXiv
1810.04805); no padding on either side, and the same optimizer: only head and loss differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from fangyan_bench.harness.machine import device
from fangyan_bench.steps.common import Observe, StepImplementation, rows_of_tokens, shuffled_rows
from fangyan_bench.trainer_access import IGNORE_INDEX, BenchmarkSetup, head_loss, install_loss_head

LENGTH, BATCH, MASKED = 128, 16, 0.15
SIZES: dict[str, dict[str, int]] = {
    "small": {
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    },
    "base": {},
}
BASELINE, OURS = "plain model", "plain model with fangyan's head"


class MaskedLm:
    """``BertForMaskedLM`` with random weights in ``torch.optim.AdamW``; its own loss, or fangyan's."""

    def __init__(self, setup: BenchmarkSetup, size: str, fused: bool):
        torch.manual_seed(0)
        config = BertConfig(vocab_size=len(setup.tokenizer), **SIZES[size])
        self.model: Any = BertForMaskedLM(config).to(device()).train()
        self.steps = 2 if size == "small" else 1
        self._bf16 = setup.bf16
        self._head = install_loss_head(self.model, config.vocab_size, "auto") if fused else None
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self._mask_id = setup.tokenizer.mask_token_id
        self.batches = self._masked(rows_of_tokens(setup, LENGTH))

    def loss(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch that is not on the GPU yet, ()."""
        num_valid = int((labels != IGNORE_INDEX).sum())
        input_ids, labels = input_ids.to(device()), labels.to(device())
        if self._head is None:
            loss: Tensor = self.model(input_ids=input_ids, labels=labels).loss
            return loss
        with head_loss(self._head, labels, num_valid):
            fused: Tensor = self.model(input_ids=input_ids).logits
        return fused

    def train(self, steps: int | None, observe: Observe) -> None:
        """Take some steps, or those until ``observe`` returns True."""
        assert steps is not None
        for _ in range(steps):
            input_ids, labels = next(self.batches)
            with torch.autocast(device(), torch.bfloat16, enabled=self._bf16):
                loss = self.loss(input_ids, labels)
            loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
            if observe(input_ids.numel(), len(input_ids)):
                return

    def _masked(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for batch in shuffled_rows(rows, BATCH, generator):
            masked = torch.rand(batch.shape, generator=generator) < MASKED
            yield batch.masked_fill(masked, self._mask_id), batch.masked_fill(~masked, IGNORE_INDEX)


def check_agreement(setup: BenchmarkSetup) -> None:
    """Assert the same loss and gradients with and without fangyan's head."""
    plain, fused = (MaskedLm(setup, "small", fused) for fused in (False, True))
    batch = next(plain.batches)
    losses = []
    for step in (plain, fused):
        step.model.eval()
        losses.append(step.loss(*batch))
        losses[-1].backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    pairs = zip(plain.model.named_parameters(), fused.model.named_parameters(), strict=True)
    for (name, left), (_, right) in pairs:
        assert left.grad is not None
        assert left.grad.abs().sum() > 0 or "key.bias" in name, name
        torch.testing.assert_close(right.grad, left.grad, rtol=1e-3, atol=1e-5, msg=name)


def implementations(size: str) -> dict[str, StepImplementation]:
    """Return the implementations for a size of model."""
    return {
        BASELINE: StepImplementation("baseline", partial(MaskedLm, size=size, fused=False)),
        OURS: StepImplementation("ours", partial(MaskedLm, size=size, fused=True)),
    }
