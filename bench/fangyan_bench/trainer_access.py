"""The one module that imports the trainer: a change of the trainer's interface is a change here alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from fangyan.adaptation.lora import Lora
from fangyan.adaptation.quantization import quantize
from fangyan.data.example import Example
from fangyan.data.formats.hkcancor import PUNCTUATION_TAG, HKCanCor, corpus_folder
from fangyan.data.masking import draws
from fangyan.data.packing import Batch, collate
from fangyan.data.tokenization import IGNORE_INDEX, TokenizedSequence, Tokenizer
from fangyan.distributed.process_group import start_distributed
from fangyan.models.loss_head import Kernels, LossHead, LossOptions, install_loss_head
from fangyan.models.packed import Layout, PackedModel
from fangyan.recipe import Recipe, load_recipe
from fangyan.tasks.evaluation import run_batches
from fangyan.tasks.task import Task
from fangyan.tasks.token_classification.metrics import word_metrics
from fangyan.training.engine import has_fast_bfloat16
from fangyan.training.trainer import Trainer
from torch import Tensor, nn

__all__ = [
    "IGNORE_INDEX",
    "PUNCTUATION_TAG",
    "RECIPE",
    "BenchmarkSetup",
    "Layout",
    "Recipe",
    "RecipeSteps",
    "TokenizedSequence",
    "add_lora",
    "as_trained",
    "has_fast_bfloat16",
    "head_loss",
    "hkcancor_lengths",
    "install_loss_head",
    "load_recipe",
    "load_setup",
    "packed_loss",
    "quantize_nf4",
    "recipe_loss",
    "start_distributed",
    "word_metrics",
]

RECIPE = "cantonese-pos"  # what all steps take their data from


@dataclass(frozen=True)
class BenchmarkSetup:
    """A recipe's data and model, as any trainer would take them.

    Attributes:
        path: of the recipe.
        overrides: of its fields.
        recipe: the recipe itself.
        task: fitted to its data.
        tokenizer: of transformers.
        sequences: the training data, without what is too long for the loop that pads.
        dev: examples and sequences to score on.
    """

    path: str
    overrides: tuple[str, ...]
    recipe: Recipe
    task: Task
    tokenizer: Any
    sequences: list[TokenizedSequence]
    dev: tuple[Sequence[Example], list[TokenizedSequence]]

    @property
    def bf16(self) -> bool:
        """Whether the recipe computes in bfloat16."""
        return self.recipe.engine.precision == "bf16"

    @property
    def epochs(self) -> int:
        """How often the recipe goes over its data."""
        return self.recipe.train.epochs

    @property
    def batch_tokens(self) -> int:
        """Sub-words in one of the recipe's steps."""
        return self.recipe.train.batch_tokens

    @property
    def num_tokens(self) -> int:
        """Sub-words of all sequences."""
        return sum(len(sequence.input_ids) for sequence in self.sequences)

    def with_overrides(self, *overrides: str) -> BenchmarkSetup:
        """Return the same data and model under a changed recipe."""
        combined = (*self.overrides, *overrides)
        return replace(self, overrides=combined, recipe=load_recipe(self.path, list(combined)))

    def model(self, device: str, dropout: bool = True) -> Any:
        """Load the model as transformers does, or without any dropout."""
        plain = {
            "hidden_dropout": None if dropout else 0.0,
            "attention_dropout": 0.1 if dropout else 0.0,
        }
        config = self.recipe.model.model_copy(update=plain)
        task = self.task
        kwargs = task.model_kwargs(), task.tokenizer_kwargs
        return config.load(task.auto_model, self.recipe.seed, *kwargs)[0].to(device)

    def score(self, model: nn.Module) -> float:
        """Return the dev score of a plain transformers model, whoever has trained it."""
        model.eval()
        examples, sequences = self.dev
        plain: Any = _PlainModel(model)
        outputs = run_batches(self.task, plain, sequences, self.tokenizer.pad_token_id)
        score = self.task.metrics(examples, outputs)[self.task.primary_metric]
        model.train()
        return score


class _PlainModel:
    """A transformers model with the methods of :class:`PackedModel` that evaluation calls."""

    row_width = 0  # one sequence per row

    def __init__(self, model: nn.Module):
        self._model = model

    def __call__(self, compute: Callable[[_PlainModel], list[Any]]) -> list[Any]:
        return compute(self)

    def logits(self, batch: Batch) -> Tensor:
        mask = (batch.sequence_ids > 0).long()
        logits: Tensor = self._model(input_ids=batch.input_ids, attention_mask=mask).logits
        return logits


def load_setup(path: str, overrides: Sequence[str], longest: int) -> BenchmarkSetup:
    """Load the data and the tokenizer of a recipe.

    Args:
        path: of the recipe, or its name.
        overrides: of its fields, such as ``engine.precision=bf16``.
        longest: sub-words; longer sequences are left out of the training data.
    """
    trainer = Trainer(load_recipe(path, list(overrides)))
    sequences = [sequence for sequence in trainer.sequences if len(sequence.input_ids) <= longest]
    examples = trainer.splits["dev"]
    dev = examples, trainer.task.tokenize_scored(examples, trainer.tokenizer, trainer.max_length)
    backend = trainer.tokenizer.backend
    return BenchmarkSetup(path, tuple(overrides), trainer.recipe, trainer.task, backend, sequences, dev)


class RecipeSteps:
    """The recipe's own steps: packed, in the DeepSpeed engine, with the recipe's optimizer."""

    steps = 2  # of one sample

    def __init__(self, recipe: Recipe):
        start_distributed()
        self._trainer = Trainer(recipe)
        self._trainer.start_engine()
        self._trainer.engine.train()
        self.model: nn.Module = self._trainer.model.model
        self._done = 0

    def train(self, steps: int | None, observe: Callable[[int, int], bool]) -> None:
        """Take some steps, or those of all epochs; ``observe`` ends them by returning True."""
        batches = [batch for epoch in self._trainer.batches for batch in epoch]
        for _ in range(len(batches) if steps is None else steps):
            batch = batches[self._done % len(batches)]
            loss = self._trainer.train_step(batch, self._done)
            self._done += 1
            loss.item()
            if observe(sum(self._trainer.lengths[i] for i in batch), len(batch)):
                return

    def score(self) -> float:
        """Return the dev score."""
        return self._trainer.evaluate("dev")["dev"][self._trainer.metric]


def packed_loss(model: nn.Module, layout: Layout, pad_id: int) -> Callable[[list[TokenizedSequence]], Tensor]:
    """Return a function from sequences to their summed loss, laid out and computed as the trainer does."""
    packed = PackedModel(model, layout)
    device = next(model.parameters()).device
    return lambda sequences: packed.loss(collate(sequences, pad_id, packed.row_width).to(device))


def recipe_loss(setup: BenchmarkSetup, model: nn.Module, sequences: list[TokenizedSequence]) -> Tensor:
    """Return the mean loss of sequences as the trainer computes it for the recipe's task, packed."""
    setup.task.use_model(model, setup.tokenizer)
    packed = setup.task.pack(model, "varlen")
    batch = collate(sequences, setup.tokenizer.pad_token_id, packed.row_width)
    return packed.loss(batch, float(batch.num_valid))


def as_trained(setup: BenchmarkSetup, sequences: list[TokenizedSequence]) -> list[TokenizedSequence]:
    """Return sequences as a step trains on them: of a masked language model, with some words hidden."""
    if not setup.task.corrupts:
        return sequences
    return setup.task.corrupt(sequences, draws(0, "0", range(len(sequences))), Tokenizer(setup.tokenizer))


def head_loss(head: LossHead, labels: Tensor, num_valid: int) -> AbstractContextManager[list[Tensor]]:
    """Let a head return the mean loss of these labels in place of logits."""
    options = LossOptions(labels, num_valid, float(num_valid))
    return head.computing(lambda hidden: head.loss(hidden, options))


def add_lora(model: Any, dropout: float, dtype: torch.dtype, kernels: Kernels) -> Any:
    """Put LoRA of rank 16 beside every linear layer but the head of a causal model.

    Args:
        model: of transformers, whole or quantized.
        dropout: of the adapters' input.
        dtype: of the activations.
        kernels: ``reference`` leaves the adapted layers to PEFT.
    """
    return Lora(rank=16, alpha=32.0, dropout=dropout).apply(
        model,
        peft_task_type="CAUSAL_LM",
        new_head=None,
        total_steps=1,
        activation_dtype=dtype,
        kernels=kernels,
    )


def quantize_nf4(model: Any, dtype: torch.dtype) -> None:
    """Replace the linear layers that are not quantized yet by 4-bit ones."""
    quantize(model, [], dtype)


@cache
def hkcancor_lengths() -> list[int]:
    """Return the sub-words of every utterance of HKCanCor in characters, with two special tokens each."""
    return [len(example.fields["tokens"]) + 2 for example in _utterances(HKCanCor(tokens="characters"))]


def _utterances(corpus: HKCanCor) -> Iterator[Example]:
    for path in sorted(Path(corpus_folder()).glob("*.cha")):
        yield from corpus.read(path)
