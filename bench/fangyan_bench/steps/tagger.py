"""A tagger's whole step: the usual tutorial loop, the HF Trainer, and fangyan.

Same model, same sentences, each in a process of its own. Tokens are sub-words with the special
tokens of each sentence and without padding.
"""

from __future__ import annotations

import gc
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from fangyan.data import load_parts
from fangyan.data.encode import IGNORE, Encoder, Window
from fangyan.data.packing import Batch, collate
from fangyan.engine import has_fast_bfloat16, start_distributed
from fangyan.evaluate import Tagger
from fangyan.loop import prepare, train_step
from fangyan.models import load_token_classifier, max_length
from fangyan.models.packed import Layout, PackedModel
from fangyan.recipe import Model, Recipe, load_recipe
from fangyan.tasks.token_tagging import TokenTagging
from torch import Tensor, nn
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
from fangyan_bench.harness.memory import high_water_mark, reset_peak
from fangyan_bench.harness.op import Role

PADDED_LENGTH, PADDED_BATCH = 128, 16
PLAIN_LR = 5e-4  # the best of those tried for a plain fine-tuning of the small ELECTRA
EVALUATE_EVERY = 8192  # tokens, while training until a dev score
MINUTES = 5  # until it gives up

Observe = Callable[[int, int], bool]  # after a step: its tokens and sentences; True to stop


@dataclass(frozen=True)
class BenchmarkSetup:
    """The recipe's data and model, as any trainer would take them."""

    recipe: Recipe
    task: TokenTagging
    tokenizer: Any
    encoder: Encoder
    windows: list[Window]
    dev: list[Any]

    def model(self, dropout: bool = True) -> Any:
        """The model as transformers loads it, or without any dropout."""
        source = self.recipe.model
        settings = Model(
            path=source.path,
            pretrained=source.pretrained,
            hidden_dropout=None if dropout else 0.0,
            attention_dropout=0.1 if dropout else 0.0,
        )
        return load_token_classifier(settings, self.task.labels, self.recipe.seed)[0].to(device())

    def score(self, model: Any) -> float:
        """The recipe's dev score of a plain model, whoever has trained it."""

        def logits(batch: Batch) -> Tensor:
            mask = (batch.sequence_ids > 0).long()
            result: Tensor = model(input_ids=batch.input_ids, attention_mask=mask).logits
            return result

        model.eval()
        tagger = Tagger(self.task, self.encoder, logits, torch.device(device()), 0)
        score = tagger.score(self.dev)[self.task.metric]
        model.train()
        return score


def load_setup(recipe: str) -> BenchmarkSetup:
    """Args: recipe: path of a recipe and overrides, separated by spaces."""
    path, *overrides = recipe.split()
    settings = load_recipe(path, overrides)
    parts = load_parts(settings.data, settings.seed)
    task = TokenTagging.from_data(settings.task, parts)
    model, tokenizer = load_token_classifier(settings.model, task.labels, settings.seed)
    encoder = Encoder(tokenizer, max_length(model, settings.model.max_length, "rows"))
    windows = [window for group in task.encode(parts["train"], encoder) for window in group]
    short = [window for window in windows if len(window.input_ids) <= PADDED_LENGTH]
    return BenchmarkSetup(settings, task, tokenizer, encoder, short, parts["dev"])


def write_bert_base(folder: Path, setup: BenchmarkSetup) -> None:
    """A model of BERT-base's size with random weights: time does not depend on them."""
    config = BertConfig(vocab_size=len(setup.tokenizer))
    torch.manual_seed(0)
    BertForTokenClassification(config).save_pretrained(folder)
    setup.tokenizer.save_pretrained(folder)


def pad(windows: list[Window], pad_id: int, length: int) -> dict[str, Tensor]:
    ids = torch.full((len(windows), length), pad_id)
    labels = torch.full((len(windows), length), IGNORE)
    for row, window in enumerate(windows):
        ids[row, : len(window.input_ids)] = torch.tensor(window.input_ids)
        labels[row, : len(window.targets)] = torch.tensor(window.targets)
    batch = {"input_ids": ids, "attention_mask": (ids != pad_id).long(), "labels": labels}
    return {name: tensor.to(device()) for name, tensor in batch.items()}


def check_agreement(setup: BenchmarkSetup) -> float:
    """The same loss and gradients from the plain padded model and from the packed one; gives the loss."""
    windows = setup.windows[:PADDED_BATCH]
    plain, fused = setup.model(dropout=False), setup.model(dropout=False)
    pad_id = setup.tokenizer.pad_token_id
    loss = plain(**pad(windows, pad_id, PADDED_LENGTH)).loss
    loss.backward()
    layout: Layout = "varlen" if device() == "cpu" else "rows"
    packed = PackedModel(fused, len(setup.task.labels), layout)
    labelled = sum(target != IGNORE for window in windows for target in window.targets)
    batch = collate(windows, pad_id, packed.row_width).to(torch.device(device()))
    packed_loss = packed(batch) / labelled
    packed_loss.backward()
    torch.testing.assert_close(packed_loss, loss, rtol=1e-5, atol=1e-6)
    for (name, left), (_, right) in zip(plain.named_parameters(), fused.named_parameters(), strict=True):
        # Without a position in it, a shift of every key changes no softmax: its gradient is 0.
        assert left.grad.abs().sum() > 0 or "key.bias" in name, name
        torch.testing.assert_close(right.grad, left.grad, rtol=1e-3, atol=1e-5, msg=name)
    return float(loss)


class PaddedLoop:
    """Every sentence padded to 128, batches of 16, ``torch.optim.AdamW``."""

    steps = 1  # of a sample

    def __init__(self, setup: BenchmarkSetup):
        self._setup = setup
        self.model = setup.model().train()
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=PLAIN_LR)
        self._half = setup.recipe.engine.precision == "bf16"
        self._batches = self._shuffled()

    def train(self, steps: int | None, observe: Observe) -> None:
        for _ in count() if steps is None else range(steps):
            windows = next(self._batches)
            batch = pad(windows, self._setup.tokenizer.pad_token_id, PADDED_LENGTH)
            with torch.autocast(device(), torch.bfloat16, enabled=self._half):
                loss = self.model(**batch).loss
            loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
            if observe(_tokens(windows), len(windows)):
                return

    def _shuffled(self) -> Iterator[list[Window]]:
        for seed in count():
            windows = random.Random(seed).sample(self._setup.windows, len(self._setup.windows))
            for start in range(0, len(windows) - PADDED_BATCH, PADDED_BATCH):
                yield windows[start : start + PADDED_BATCH]


class HfTrainer:
    """``transformers.Trainer`` with dynamic padding and sentences grouped by length."""

    def __init__(self, setup: BenchmarkSetup, batch: int):
        self._setup, self._batch = setup, batch
        self._folder = tempfile.TemporaryDirectory()
        self.model = setup.model()
        self.steps = max(2, 128 // batch)
        self._seeds = count()
        # The sampler sorts within large groups, and an epoch's first batches are all long: batches of
        # a whole epoch in a random order stand for it.
        self._batches = chain.from_iterable(self._epoch(seed) for seed in self._seeds)

    def _epoch(self, seed: int) -> list[list[int]]:
        lengths = [len(window.input_ids) for window in self._setup.windows]
        generator = torch.Generator().manual_seed(seed)
        order = list(LengthGroupedSampler(self._batch, lengths=lengths, generator=generator))
        batches = [order[i : i + self._batch] for i in range(0, len(order) - self._batch + 1, self._batch)]
        return random.Random(seed).sample(batches, len(batches))

    def train(self, steps: int | None, observe: Observe) -> None:
        """Makes a new Trainer; of a sample its first step, which makes the optimizer's states, is extra."""
        setup, batch = self._setup, self._batch
        most = steps + 1 if steps else len(setup.windows) // batch * setup.recipe.train.epochs
        rows, sizes = [], []
        for _ in range(most):
            windows = [setup.windows[i] for i in next(self._batches)]
            rows += [{"input_ids": window.input_ids, "labels": window.targets} for window in windows]
            sizes.append(_tokens(windows))

        class Watch(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                observe(0, 0)

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                warming = steps is not None and state.global_step == 1
                done = observe(0 if warming else sizes[state.global_step - 1], batch)
                control.should_training_stop = control.should_training_stop or done

        arguments = TrainingArguments(
            output_dir=self._folder.name,
            per_device_train_batch_size=batch,
            max_steps=most,
            learning_rate=PLAIN_LR,
            train_sampling_strategy="sequential",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=device() == "cpu",
            bf16=setup.recipe.engine.precision == "bf16",
            dataloader_pin_memory=False,
            remove_unused_columns=False,
        )
        Trainer(
            self.model,
            arguments,
            data_collator=DataCollatorForTokenClassification(setup.tokenizer),
            train_dataset=rows,
            callbacks=[Watch()],
        ).train()
        gc.collect()  # a Trainer and its states hold each other


class Fangyan:
    """The recipe's own step: packed, in the DeepSpeed engine, with the recipe's optimizer."""

    steps = 2

    def __init__(self, recipe: Recipe):
        start_distributed()
        self.run = prepare(recipe)
        self.run.engine.train()
        self.model = self.run.packed.model
        self._done = 0

    def train(self, steps: int | None, observe: Observe) -> None:
        plan = [step for epoch in self.run.plan for step in epoch]
        for _ in range(len(plan) if steps is None else steps):
            step = plan[self._done % len(plan)]
            loss = train_step(self.run, step, self._done)
            self._done += 1
            loss.item()
            if observe(sum(self.run.lengths[i] for i in step), len(step)):
                return


@dataclass(frozen=True)
class StepImplementation:
    """Who trains.

    Attributes:
        quick: whether ``--quick`` times it.
        learns: whether its time to a dev score says anything new.
        missing: why it cannot run here, or None.
    """

    role: Role
    make: Callable[[BenchmarkSetup], Any]
    quick: bool = True
    learns: bool = True
    missing: Callable[[], str | None] = lambda: None


def equal_batch(setup: BenchmarkSetup) -> int:
    """Sentences that hold as many tokens as a step of the recipe."""
    return round(setup.recipe.train.batch_tokens * len(setup.windows) / _tokens(setup.windows))


def without_kernels(setup: BenchmarkSetup) -> Fangyan:
    engine = setup.recipe.engine.model_copy(update={"kernels": "reference"})
    return Fangyan(setup.recipe.model_copy(update={"engine": engine}))


def small_steps(setup: BenchmarkSetup) -> Fangyan:
    """As many sentences a step as the usual batch: most learn sooner so, at a cost a token."""
    tokens = round(PADDED_BATCH * _tokens(setup.windows) / len(setup.windows))
    train = setup.recipe.train.model_copy(update={"batch_tokens": tokens})
    return Fangyan(setup.recipe.model_copy(update={"train": train}))


def eight_bits(setup: BenchmarkSetup) -> Fangyan:
    optimizer = setup.recipe.optimizer.model_copy(update={"name": "adamw8bit"})
    return Fangyan(setup.recipe.model_copy(update={"optimizer": optimizer}))


def eight_bits_by_bitsandbytes(setup: BenchmarkSetup) -> Fangyan:
    """The same states, stepped as before there was a step of our own."""
    import bitsandbytes
    from fangyan_kernels.optim8bit import AdamW8bit

    # Each implementation has a process of its own.
    AdamW8bit.update_step = bitsandbytes.optim.AdamW8bit.update_step  # type: ignore[method-assign]
    return eight_bits(setup)


def in_bf16(setup: BenchmarkSetup) -> BenchmarkSetup:
    engine = setup.recipe.engine.model_copy(update={"precision": "bf16"})
    return replace(setup, recipe=setup.recipe.model_copy(update={"engine": engine}))


def bf16_missing() -> str | None:
    """Why there is no bf16 beside fp32 here, or None."""
    if device() == "cuda":
        return "on a GPU every implementation is in bf16"
    return None if has_fast_bfloat16() else "the processor has neither AVX512-BF16 nor AMX"


IMPLEMENTATIONS = {
    "tutorial loop": StepImplementation("baseline", PaddedLoop),
    "HF Trainer, batch 16": StepImplementation("peer", lambda setup: HfTrainer(setup, PADDED_BATCH)),
    "HF Trainer, equal tokens": StepImplementation(
        "peer", lambda setup: HfTrainer(setup, equal_batch(setup))
    ),
    "fangyan without its kernels": StepImplementation("ours", without_kernels, quick=False, learns=False),
    "fangyan, batch 16": StepImplementation("ours", small_steps, quick=False),
    "fangyan, 8-bit AdamW": StepImplementation("ours", eight_bits, quick=False, learns=False),
    "fangyan, bitsandbytes' 8-bit AdamW": StepImplementation(
        "peer", eight_bits_by_bitsandbytes, quick=False, learns=False
    ),
    "HF Trainer, equal tokens, bf16": StepImplementation(
        "peer",
        lambda setup: HfTrainer(in_bf16(setup), equal_batch(setup)),
        quick=False,
        learns=False,
        missing=bf16_missing,
    ),
    "fangyan, bf16": StepImplementation(
        "ours",
        lambda setup: Fangyan(in_bf16(setup).recipe),
        quick=False,
        learns=False,
        missing=bf16_missing,
    ),
    "fangyan": StepImplementation("ours", lambda setup: Fangyan(setup.recipe)),
}


class StepTrial:
    """A implementation's steps in this process, with the methods of ``timing.Trial``."""

    def __init__(self, implementation: StepImplementation, setup: BenchmarkSetup):
        self._setup = setup
        self._before = reset_peak()
        start = time.perf_counter()
        self._implementation = implementation.make(self._setup)
        self._steps(1)
        self._first_call_seconds = time.perf_counter() - start

    def calibrate(self, pass_name: str) -> float:
        return self._steps(self._implementation.steps)[0]

    def sample(self, pass_name: str) -> float:
        """Seconds of a token."""
        seconds, tokens = self._steps(self._implementation.steps)
        return seconds / tokens

    def peak_memory(self) -> int:
        """Bytes that model, optimizer and steps took at most."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        return high_water_mark() - self._before

    def describe(self) -> dict[str, float]:
        """What it took to start; sentences and operations a token (6 a weight: Chowdhery et al. 2022)."""
        weights = sum(
            m.weight.numel() for m in self._implementation.model.modules() if isinstance(m, nn.Linear)
        )
        windows = self._setup.windows
        return {
            "first_call_seconds": self._first_call_seconds,
            "sentences_per_token": len(windows) / _tokens(windows),
            "flops_per_token": 6.0 * weights,
        }

    def seconds_to_score(self, score: float) -> float | None:
        """Training time until a dev score; None if the epochs or the minutes are over before."""
        clock = _Clock()
        reached: list[bool] = []

        def observe(tokens: int, sentences: int) -> bool:
            if tokens:
                clock.stop(tokens)
            due = clock.tokens // EVALUATE_EVERY > (clock.tokens - tokens) // EVALUATE_EVERY
            if due and self._score() >= score:
                reached.append(True)
            clock.start()
            return bool(reached) or clock.seconds > 60 * MINUTES

        clock.start()
        self._implementation.train(None, observe)
        return clock.seconds if reached else None

    def _score(self) -> float:
        if isinstance(self._implementation, Fangyan):
            run = self._implementation.run
            return run.evaluate("dev")["dev"][run.metric]
        return self._setup.score(self._implementation.model)

    def _steps(self, steps: int) -> tuple[float, int]:
        clock = _Clock()

        def observe(tokens: int, sentences: int) -> bool:
            if tokens:
                clock.stop(tokens)
            clock.start()
            return False

        clock.start()
        self._implementation.train(steps, observe)
        return clock.seconds, clock.tokens


class _Clock:
    """Seconds between start and stop, and the tokens trained on in them."""

    def __init__(self) -> None:
        self.seconds, self.tokens, self._started = 0.0, 0, 0.0

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self, tokens: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self._started
        self.tokens += tokens


def open_implementation(implementation: str, recipe: str) -> StepTrial:
    return StepTrial(IMPLEMENTATIONS[implementation], load_setup(recipe))


def _tokens(windows: list[Window]) -> int:
    return sum(len(window.input_ids) for window in windows)
