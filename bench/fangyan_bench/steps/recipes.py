"""Whole steps of recipes that come with fangyan, and of the HF Trainer and TRL on the same data and model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
)
from typing_extensions import override

from fangyan_bench.harness.machine import device
from fangyan_bench.steps.common import Observe, StepImplementation
from fangyan_bench.steps.tagger import PADDED_BATCH, HfTrainer, Watch, equal_batch, quiet_arguments
from fangyan_bench.trainer_access import (
    IGNORE_INDEX,
    BenchmarkSetup,
    RecipeSteps,
    TokenizedSequence,
    as_trained,
    recipe_loss,
)

# The model of each recipe.
MODELS = {
    "cantonese-questions": "ELECTRA, 5.9 M",
    "cantonese-answers": "ELECTRA, 5.9 M",
    "cantonese-mlm": "ELECTRA, 5.9 M",
    "cantonese-typing": "Qwen3, 6 layers",
}
BASELINE, OURS, TRL = "HF Trainer, batch 16", "fangyan", "TRL SFTTrainer, packing"
# Sub-words in a row of TRL's: the recipe's step is four of them.
_ROWS = 4


class HfRecipe(HfTrainer):
    """``transformers.Trainer`` on a recipe's task, with dynamic padding and texts grouped by length."""

    @override
    def row(self, sequence: TokenizedSequence) -> dict[str, Any]:
        """Return a sequence with what transformers' class for the task takes for labels."""
        return plain_row(self._setup, sequence)

    @override
    def collator(self) -> Any:
        """Return transformers' own for the task."""
        tokenizer = self._setup.tokenizer
        return {
            "sequence_classification": lambda: DataCollatorWithPadding(tokenizer),
            "extractive_qa": lambda: DataCollatorWithPadding(tokenizer),
            "masked_lm": lambda: DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
            "instruction": lambda: DataCollatorForTokenClassification(tokenizer),
        }[self._setup.task.name]()


def plain_row(setup: BenchmarkSetup, sequence: TokenizedSequence) -> dict[str, Any]:
    """Return a sequence as a collator of transformers takes it."""
    if setup.task.name == "sequence_classification":
        return {"input_ids": sequence.input_ids, "labels": max(sequence.labels)}
    if setup.task.name == "extractive_qa":
        start, end = map(int, sequence.targets)
        segments = sequence.segments or [0] * len(sequence.input_ids)
        return {
            "input_ids": sequence.input_ids,
            "token_type_ids": segments,
            "start_positions": start,
            "end_positions": end,
        }
    if setup.task.name == "instruction":  # transformers shifts labels by itself
        return {"input_ids": sequence.input_ids, "labels": [IGNORE_INDEX, *sequence.labels[:-1]]}
    return {"input_ids": sequence.input_ids}


class TrlPacking:
    """TRL's ``SFTTrainer``: conversations packed into rows, the loss on answers alone."""

    def __init__(self, setup: BenchmarkSetup):
        self._setup = setup
        self.model = setup.model(device())
        self.steps = 2
        self._folder = tempfile.TemporaryDirectory()

    def train(self, steps: int | None, observe: Observe) -> None:
        """Make a new trainer, and take some steps; the first, which makes the states, is extra."""
        from datasets import Dataset
        from trl.trainer.sft_config import SFTConfig
        from trl.trainer.sft_trainer import SFTTrainer

        assert steps is not None
        rows = [plain_row(self._setup, sequence) for sequence in self._setup.sequences]
        data = [
            {
                "input_ids": row["input_ids"],
                "completion_mask": [int(i != IGNORE_INDEX) for i in row["labels"]],
            }
            for row in rows
        ]
        arguments = SFTConfig(
            **quiet_arguments(self._setup, self._folder.name, _ROWS, steps + 1),
            max_length=self._setup.batch_tokens // _ROWS,
            packing=True,
            gradient_checkpointing=False,
        )
        trainer = SFTTrainer(
            self.model,
            arguments,
            train_dataset=Dataset.from_list(data),
            processing_class=self._setup.tokenizer,
        )
        counts: list[int] = []
        trainer.data_collator = _counted(trainer.data_collator, counts)
        trainer.add_callback(Watch(observe, counts, _ROWS, warms_up=True))
        trainer.train()


def _counted(collate: Callable[[Any], Any], counts: list[int]) -> Callable[[Any], Any]:
    """Return a collator that writes down the sub-words of each batch."""

    def counting(rows: Any) -> Any:
        counts.append(sum(len(row["input_ids"]) for row in rows))
        return collate(rows)

    return counting


def check_agreement(setup: BenchmarkSetup) -> None:
    """Assert that transformers' own class and fangyan's packed model have the same loss and gradients."""
    sequences = as_trained(setup, setup.sequences[:PADDED_BATCH])
    plain, packed = (setup.model(device(), dropout=False).eval() for _ in range(2))
    setup.task.use_model(plain, setup.tokenizer)
    if setup.task.name == "masked_lm":  # a collator would hide others
        rows = [{"input_ids": s.input_ids, "labels": s.labels} for s in sequences]
    else:
        rows = [plain_row(setup, s) for s in sequences]
    is_text = setup.task.name in ("sequence_classification", "extractive_qa")
    collator = (DataCollatorWithPadding if is_text else DataCollatorForTokenClassification)(setup.tokenizer)
    # An answer may be anywhere in a padded row for transformers, also in the padding: one row at a time.
    batches = [[row] for row in rows] if setup.task.name == "extractive_qa" else [rows]
    loss = torch.stack([plain(**collator(batch)).loss for batch in batches]).mean()
    loss.backward()
    found = recipe_loss(setup, packed, sequences)
    found.backward()
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-6)
    compared = 0
    for (name, left), (_, right) in zip(plain.named_parameters(), packed.named_parameters(), strict=True):
        if left.grad is not None:
            torch.testing.assert_close(right.grad, left.grad, rtol=1e-3, atol=1e-5, msg=name)
            compared += bool(left.grad.any())
    assert compared > 10


def _hf_equal_tokens(setup: BenchmarkSetup) -> HfRecipe:
    return HfRecipe(setup, equal_batch(setup))


def implementations(recipe: str) -> dict[str, StepImplementation]:
    """Return the implementations for a recipe."""
    found = {
        BASELINE: StepImplementation("baseline", lambda setup: HfRecipe(setup, PADDED_BATCH)),
        "HF Trainer, equal tokens": StepImplementation("peer", _hf_equal_tokens),
    }
    if recipe == "cantonese-typing":
        found[TRL] = StepImplementation("peer", TrlPacking)
    return found | {OURS: StepImplementation("ours", lambda setup: RecipeSteps(setup.recipe))}
