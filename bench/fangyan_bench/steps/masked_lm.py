"""Masked language modelling from raw text: a plain model's whole step, and the same with fangyan's head.

Rows of 128 tokens cut from HKCanCor, 16 a step, 15% of the tokens masked (Devlin et al. 2019, arXiv
1810.04805); no padding on either side, and the same optimizer: what differs is head and loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from fangyan.data.encode import IGNORE
from fangyan.models.head import install_loss_head
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from fangyan_bench.harness.machine import device
from fangyan_bench.steps.tagger import BenchmarkSetup, Observe, StepImplementation, StepTrial, load_setup

LENGTH, BATCH, MASKED = 128, 16, 0.15
SIZES = {
    "small": {
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    },
    "base": {},
}


class MaskedLm:
    """``BertForMaskedLM`` with random weights in ``torch.optim.AdamW``; its own loss, or fangyan's."""

    def __init__(self, setup: BenchmarkSetup, size: str, fused: bool):
        torch.manual_seed(0)
        config = BertConfig(vocab_size=len(setup.tokenizer), **SIZES[size])
        self.model = BertForMaskedLM(config).to(device()).train()
        self.steps = 2 if size == "small" else 1
        self._half = setup.recipe.engine.precision == "bf16"
        self._head = install_loss_head(self.model, config.vocab_size, 0.0, "auto") if fused else None
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self._mask_id = setup.tokenizer.mask_token_id
        ids = torch.tensor(list(chain.from_iterable(window.input_ids for window in setup.windows)))
        self._rows = ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)
        self._batches = self._shuffled()

    def loss(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Of a batch that is not on the GPU yet."""
        labelled = int((labels != IGNORE).sum())
        input_ids, labels = input_ids.to(device()), labels.to(device())
        if self._head is None:
            return self.model(input_ids=input_ids, labels=labels).loss
        with self._head.computing_loss(labels, labelled, labelled):
            return self.model(input_ids=input_ids).logits

    def train(self, steps: int | None, observe: Observe) -> None:
        assert steps is not None
        for _ in range(steps):
            input_ids, labels = next(self._batches)
            with torch.autocast(device(), torch.bfloat16, enabled=self._half):
                loss = self.loss(input_ids, labels)
            loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
            if observe(input_ids.numel(), len(input_ids)):
                return

    def _shuffled(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        while True:
            order = torch.randperm(len(self._rows), generator=generator)
            for chosen in order.split(BATCH)[:-1]:
                rows = self._rows[chosen]
                masked = torch.rand(rows.shape, generator=generator) < MASKED
                yield rows.masked_fill(masked, self._mask_id), rows.masked_fill(~masked, IGNORE)


def check_agreement(setup: BenchmarkSetup) -> None:
    """The same loss and gradients with and without fangyan's head."""
    plain, fused = (MaskedLm(setup, "small", fused) for fused in (False, True))
    batch = next(plain._batches)
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


BASELINE, OURS = "plain model", "plain model with fangyan's head"


def implementations(size: str) -> dict[str, StepImplementation]:
    return {
        BASELINE: StepImplementation("baseline", lambda setup: MaskedLm(setup, size, fused=False)),
        OURS: StepImplementation("ours", lambda setup: MaskedLm(setup, size, fused=True)),
    }


def open_implementation(implementation: str, recipe: str) -> StepTrial:
    """``recipe``: the size of the model, then a recipe as ``load_setup`` takes it."""
    size, _, rest = recipe.partition(" ")
    return StepTrial(implementations(size)[implementation], load_setup(rest))
