"""A tagger's whole step: the loop of tutorials, the HF Trainer, and fangyan.

Same model, same sentences, each implementation in a process of its own.
"""

from __future__ import annotations

import gc
import random
import tempfile
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from fangyan_bench.harness.machine import device
from fangyan_bench.steps.common import PADDED_LENGTH, Observe, StepImplementation
from fangyan_bench.trainer_access import (
    IGNORE_INDEX,
    BenchmarkSetup,
    Layout,
    RecipeSteps,
    TokenizedSequence,
    has_fast_bfloat16,
    packed_loss,
)

PADDED_BATCH = 16
PLAIN_LR = 5e-4  # the best of those tried for a plain fine-tuning of the small ELECTRA
BASELINE, OURS, OURS_BF16 = "tutorial loop", "fangyan", "fangyan, bf16"


def write_bert_base(folder: Path, setup: BenchmarkSetup) -> None:
    """Write a model of BERT-base's size with random weights: time does not depend on them."""
    config = BertConfig(vocab_size=len(setup.tokenizer))
    torch.manual_seed(0)
    BertForTokenClassification(config).save_pretrained(folder)
    setup.tokenizer.save_pretrained(folder)


def pad(sequences: list[TokenizedSequence], pad_id: int, length: int) -> dict[str, Tensor]:
    """Return a batch with every sequence padded to one length, as a model takes it."""
    ids = torch.full((len(sequences), length), pad_id)
    labels = torch.full((len(sequences), length), IGNORE_INDEX)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.input_ids)] = torch.tensor(sequence.input_ids)
        labels[row, : len(sequence.labels)] = torch.tensor(sequence.labels)
    batch = {"input_ids": ids, "attention_mask": (ids != pad_id).long(), "labels": labels}
    return {name: tensor.to(device()) for name, tensor in batch.items()}


def check_agreement(setup: BenchmarkSetup) -> None:
    """Assert that the plain padded model and the packed one have the same loss and gradients."""
    sequences = setup.sequences[:PADDED_BATCH]
    plain, fused = (setup.model(device(), dropout=False) for _ in range(2))
    pad_id = setup.tokenizer.pad_token_id
    loss = plain(**pad(sequences, pad_id, PADDED_LENGTH)).loss
    loss.backward()
    layout: Layout = "varlen" if device() == "cpu" else "rows"
    num_valid = sum(label != IGNORE_INDEX for sequence in sequences for label in sequence.labels)
    packed = packed_loss(fused, layout, pad_id)(sequences) / num_valid
    packed.backward()
    torch.testing.assert_close(packed, loss, rtol=1e-5, atol=1e-6)
    for (name, left), (_, right) in zip(plain.named_parameters(), fused.named_parameters(), strict=True):
        # Without a position in it, a shift of every key changes no softmax: its gradient is 0.
        assert left.grad.abs().sum() > 0 or "key.bias" in name, name
        torch.testing.assert_close(right.grad, left.grad, rtol=1e-3, atol=1e-5, msg=name)


class PaddedLoop:
    """Every sentence padded to 128, batches of 16, ``torch.optim.AdamW``."""

    steps = 1  # of one sample

    def __init__(self, setup: BenchmarkSetup):
        self._setup = setup
        self.model = setup.model(device()).train()
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=PLAIN_LR)
        self._batches = self._shuffled()

    def train(self, steps: int | None, observe: Observe) -> None:
        """Take some steps, or those until ``observe`` returns True."""
        for _ in count() if steps is None else range(steps):
            sequences = next(self._batches)
            batch = pad(sequences, self._setup.tokenizer.pad_token_id, PADDED_LENGTH)
            with torch.autocast(device(), torch.bfloat16, enabled=self._setup.bf16):
                loss = self.model(**batch).loss
            loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
            if observe(_num_tokens(sequences), len(sequences)):
                return

    def score(self) -> float:
        """Return the dev score."""
        return self._setup.score(self.model)

    def _shuffled(self) -> Iterator[list[TokenizedSequence]]:
        for seed in count():
            sequences = random.Random(seed).sample(self._setup.sequences, len(self._setup.sequences))
            for start in range(0, len(sequences) - PADDED_BATCH, PADDED_BATCH):
                yield sequences[start : start + PADDED_BATCH]


class HfTrainer:
    """``transformers.Trainer`` with dynamic padding and sentences grouped by length."""

    def __init__(self, setup: BenchmarkSetup, batch: int):
        self._setup, self._batch = setup, batch
        self._folder = tempfile.TemporaryDirectory()
        self.model = setup.model(device())
        self.steps = max(2, 128 // batch)
        # The sampler sorts within large groups, and an epoch's first batches are all long: batches of a whole
        # epoch in a random order stand for it.
        self._batches = chain.from_iterable(self._epoch(seed) for seed in count())

    def _epoch(self, seed: int) -> list[list[int]]:
        lengths = [len(sequence.input_ids) for sequence in self._setup.sequences]
        generator = torch.Generator().manual_seed(seed)
        order = list(LengthGroupedSampler(self._batch, lengths=lengths, generator=generator))
        batches = [order[i : i + self._batch] for i in range(0, len(order) - self._batch + 1, self._batch)]
        return random.Random(seed).sample(batches, len(batches))

    def train(self, steps: int | None, observe: Observe) -> None:
        """Make a new Trainer, and take some steps or those of all epochs.

        Its first step of a sample, which makes the optimizer's states, is extra.
        """
        setup = self._setup
        total = steps + 1 if steps else len(setup.sequences) // self._batch * setup.epochs
        batches = [[setup.sequences[i] for i in next(self._batches)] for _ in range(total)]
        Trainer(
            self.model,
            self._arguments(total),
            data_collator=self.collator(),
            train_dataset=[self.row(s) for batch in batches for s in batch],
            callbacks=[Watch(observe, list(map(_num_tokens, batches)), self._batch, steps is not None)],
        ).train()
        gc.collect()  # a Trainer and its states refer to each other

    def row(self, sequence: TokenizedSequence) -> dict[str, Any]:
        """Return a sequence as the collator takes it."""
        return {"input_ids": sequence.input_ids, "labels": sequence.labels}

    def collator(self) -> Any:
        """Return what pads the sequences of a batch."""
        return DataCollatorForTokenClassification(self._setup.tokenizer)

    def score(self) -> float:
        """Return the dev score."""
        return self._setup.score(self.model)

    def _arguments(self, total: int) -> Any:
        return TrainingArguments(
            **quiet_arguments(self._setup, self._folder.name, self._batch, total),
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
        )


def quiet_arguments(setup: BenchmarkSetup, folder: str, batch: int, steps: int) -> dict[str, Any]:
    """Return what all Trainers are told: they save and print nothing.

    Args:
        setup: says whether in bfloat16.
        folder: that they want.
        batch: rows of a step.
        steps: how many.
    """
    return {
        "output_dir": folder,
        "per_device_train_batch_size": batch,
        "max_steps": steps,
        "learning_rate": PLAIN_LR,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": device() == "cpu",
        "bf16": setup.bf16,
        "dataloader_pin_memory": False,
    }


class Watch(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Observes a Trainer's steps."""

    def __init__(self, observe: Observe, num_tokens: list[int], batch: int, warms_up: bool):
        self._observe, self._num_tokens = observe, num_tokens
        self._batch, self._warms_up = batch, warms_up

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._observe(0, 0)

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        warming = self._warms_up and state.global_step == 1
        done = self._observe(0 if warming else self._num_tokens[state.global_step - 1], self._batch)
        control.should_training_stop = control.should_training_stop or done


def equal_batch(setup: BenchmarkSetup) -> int:
    """Return how many sentences hold as many tokens as one of the recipe's steps."""
    return round(setup.batch_tokens * len(setup.sequences) / setup.num_tokens)


def _hf_equal_tokens(setup: BenchmarkSetup) -> HfTrainer:
    return HfTrainer(setup, equal_batch(setup))


def _recipe_with(*overrides: str) -> StepImplementation:
    """Return fangyan under a changed recipe."""
    return StepImplementation(
        "ours",
        lambda setup: RecipeSteps(setup.with_overrides(*overrides).recipe),
        quick=False,
        learns=False,
    )


def _small_steps(setup: BenchmarkSetup) -> RecipeSteps:
    """Take as many sentences per step as the usual batch: most learn sooner so, at a cost per token."""
    tokens = round(PADDED_BATCH * setup.num_tokens / len(setup.sequences))
    return RecipeSteps(setup.with_overrides(f"train.batch_tokens={tokens}").recipe)


def _eight_bits_by_bitsandbytes(setup: BenchmarkSetup) -> RecipeSteps:
    """Step the same 8-bit states by bitsandbytes' own code."""
    import bitsandbytes
    from fangyan_kernels.optim8bit import AdamW8bit

    # Each implementation has a process of its own.
    AdamW8bit.update_step = bitsandbytes.optim.AdamW8bit.update_step  # type: ignore[method-assign]
    return RecipeSteps(setup.with_overrides("optimizer.name=adamw8bit").recipe)


def _bf16_missing() -> str | None:
    """Return why there is no bf16 beside fp32 here, or None."""
    if device() == "cuda":
        return "on a GPU every implementation is in bf16"
    return None if has_fast_bfloat16() else "the processor has neither AVX512-BF16 nor AMX"


def _in_bf16(setup: BenchmarkSetup) -> BenchmarkSetup:
    return setup.with_overrides("engine.precision=bf16")


IMPLEMENTATIONS = {
    # Not quick: a token takes it ten times as long, so that it was half of the time of `bench --quick`.
    BASELINE: StepImplementation("baseline", PaddedLoop, quick=False),
    "HF Trainer, batch 16": StepImplementation("peer", lambda setup: HfTrainer(setup, PADDED_BATCH)),
    "HF Trainer, equal tokens": StepImplementation("peer", _hf_equal_tokens),
    "fangyan without its kernels": _recipe_with("engine.kernels=reference"),
    "fangyan, batch 16": StepImplementation("ours", _small_steps, quick=False),
    "fangyan, 8-bit AdamW": _recipe_with("optimizer.name=adamw8bit"),
    "fangyan, bitsandbytes' 8-bit AdamW": StepImplementation(
        "peer", _eight_bits_by_bitsandbytes, quick=False, learns=False
    ),
    "HF Trainer, equal tokens, bf16": StepImplementation(
        "peer",
        lambda setup: _hf_equal_tokens(_in_bf16(setup)),
        quick=False,
        learns=False,
        missing=_bf16_missing,
    ),
    OURS_BF16: StepImplementation(
        "ours",
        lambda setup: RecipeSteps(_in_bf16(setup).recipe),
        quick=False,
        learns=False,
        missing=_bf16_missing,
    ),
    OURS: StepImplementation("ours", lambda setup: RecipeSteps(setup.recipe)),
}


def implementations(_size: str) -> dict[str, StepImplementation]:
    """Return all implementations: the model is the recipe's."""
    return IMPLEMENTATIONS


def _num_tokens(sequences: list[TokenizedSequence]) -> int:
    return sum(len(sequence.input_ids) for sequence in sequences)
