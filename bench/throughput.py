"""A tagger's whole step, optimizer included: the tutorial loop, the HF Trainer, and fangyan.

Same model, same sentences, same machine. First all of them, with dropout off, must give the same
loss and the same gradients on the same sentences; then each trains some steps in turn, round after
round, so that a drift of the machine's speed hits all alike.

    python bench/throughput.py recipes/cantonese-pos.yaml

Tokens are sub-words with the special tokens of each sentence and without padding.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
from fangyan.data import load_parts
from fangyan.data.encode import IGNORE, Encoder, Window
from fangyan.data.order import epoch_steps
from fangyan.data.packing import collate
from fangyan.engine import build_engine, start_distributed
from fangyan.loop import train_step
from fangyan.models import load_token_classifier, max_length
from fangyan.models.dropout import use_byte_dropout
from fangyan.models.packed import PackedModel
from fangyan.recipe import Model, Recipe, load_recipe
from fangyan.tasks.token_tagging import TokenTagging
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import DataCollatorForTokenClassification, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

TUTORIAL_LENGTH = 128
TUTORIAL_BATCH = 16

Run = Callable[[], tuple[int, float]]  # trains some steps: (tokens, seconds)


@dataclass(frozen=True)
class Setting:
    recipe: Recipe
    labels: list[str]
    tokenizer: Any
    windows: list[Window]

    def model(self, dropout: bool) -> Any:
        """The pretrained model, as transformers would load it, or without any dropout."""
        rate = None if dropout else 0.0
        settings = Model(
            path=self.recipe.model.path, hidden_dropout=rate, attention_dropout=0.1 if dropout else 0.0
        )
        return load_token_classifier(settings, self.labels, self.recipe.seed)[0]


def prepare(recipe: Recipe) -> Setting:
    parts = load_parts(recipe.data, recipe.seed)
    task = TokenTagging.from_data(recipe.task, parts)
    model, tokenizer = load_token_classifier(recipe.model, task.labels, recipe.seed)
    encoder = Encoder(tokenizer, max_length(model, recipe.model.max_length, "rows"))
    windows = [window for group in task.encode(parts["train"], encoder) for window in group]
    return Setting(
        recipe, task.labels, tokenizer, [w for w in windows if len(w.input_ids) <= TUTORIAL_LENGTH]
    )


def padded(windows: list[Window], pad_id: int, length: int) -> dict[str, Tensor]:
    ids = torch.full((len(windows), length), pad_id)
    labels = torch.full((len(windows), length), IGNORE)
    for row, window in enumerate(windows):
        ids[row, : len(window.input_ids)] = torch.tensor(window.input_ids)
        labels[row, : len(window.targets)] = torch.tensor(window.targets)
    return {"input_ids": ids, "attention_mask": (ids != pad_id).long(), "labels": labels}


def check_agreement(setting: Setting) -> float:
    """The same loss and gradients from the plain padded model and from the packed one; gives the loss."""
    windows = setting.windows[:TUTORIAL_BATCH]
    plain, fused = setting.model(dropout=False), setting.model(dropout=False)
    loss = plain(**padded(windows, setting.tokenizer.pad_token_id, TUTORIAL_LENGTH)).loss
    loss.backward()
    packed = PackedModel(fused, len(setting.labels), "rows")
    labelled = sum(target != IGNORE for window in windows for target in window.targets)
    packed_loss = packed(collate(windows, setting.tokenizer.pad_token_id, packed.row_width)) / labelled
    packed_loss.backward()
    torch.testing.assert_close(packed_loss, loss, rtol=1e-5, atol=1e-6)
    for (name, left), (_, right) in zip(plain.named_parameters(), fused.named_parameters(), strict=True):
        # Without a position in it, a shift of every key changes no softmax: its gradient is 0.
        assert left.grad.abs().sum() > 0 or "key.bias" in name, name
        torch.testing.assert_close(right.grad, left.grad, rtol=1e-3, atol=1e-5, msg=name)
    return loss.item()


def tutorial(setting: Setting, steps: int) -> Run:
    """Every sentence padded to 128, batches of 16, torch.optim.AdamW."""
    model = setting.model(dropout=True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    batches = _batches(setting)

    def run() -> tuple[int, float]:
        tokens, start = 0, time.perf_counter()
        for windows in islice(batches, steps):
            model(**padded(windows, setting.tokenizer.pad_token_id, TUTORIAL_LENGTH)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            tokens += _tokens(windows)
        return tokens, time.perf_counter() - start

    return run


def hf_trainer(setting: Setting, steps: int, batch: int) -> Run:
    """transformers.Trainer with dynamic padding and sentences grouped by length."""

    class Clock(TrainerCallback):
        start = end = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.start = self.start or time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.end = time.perf_counter()

    # The sampler sorts within large groups, and the first batches of an epoch are all long: some of a
    # whole epoch's batches, drawn at random, stand for it.
    lengths = [len(window.input_ids) for window in setting.windows]
    order = list(LengthGroupedSampler(batch, lengths=lengths, generator=torch.Generator().manual_seed(0)))
    batches = [order[start : start + batch] for start in range(0, len(order) - batch + 1, batch)]
    chosen = random.Random(0).sample(batches, steps)
    rows = [
        {"input_ids": setting.windows[i].input_ids, "labels": setting.windows[i].targets}
        for members in chosen
        for i in members
    ]
    pad = DataCollatorForTokenClassification(setting.tokenizer)
    seen: list[int] = []

    def collator(features: list[dict[str, Any]]) -> dict[str, Tensor]:
        seen.append(sum(len(feature["input_ids"]) for feature in features))
        return pad(features)

    def run() -> tuple[int, float]:
        clock = Clock()
        arguments = TrainingArguments(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=batch,
            max_steps=steps,
            train_sampling_strategy="sequential",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False,
            remove_unused_columns=False,
        )
        trainer = Trainer(
            setting.model(dropout=True),
            arguments,
            data_collator=collator,
            train_dataset=rows,
            callbacks=[clock],
        )
        seen.clear()
        trainer.train()
        return sum(seen[:steps]), clock.end - clock.start

    return run


def fangyan(setting: Setting, steps: int) -> Run:
    """The recipe's own step: packed rows, the DeepSpeed engine, the recipe's optimizer."""
    recipe = setting.recipe
    model, _ = load_token_classifier(recipe.model, setting.labels, recipe.seed)
    if not torch.cuda.is_available():
        use_byte_dropout(model)
    packed = PackedModel(model, len(setting.labels), "rows", recipe.task.label_smoothing)
    engine, _ = build_engine(recipe, packed, total_steps=10_000)
    engine.train()
    lengths = [len(window.input_ids) for window in setting.windows]
    plan = cycle(epoch_steps(lengths, recipe.train.batch_tokens, recipe.seed, 0))

    def run() -> tuple[int, float]:
        tokens, start = 0, time.perf_counter()
        for number, step in enumerate(islice(plan, steps)):
            train_step(
                engine, recipe, setting.windows, lengths, step, number, setting.tokenizer, packed
            ).item()
            tokens += sum(lengths[i] for i in step)
        return tokens, time.perf_counter() - start

    return run


def _tokens(windows: list[Window]) -> int:
    return sum(len(window.input_ids) for window in windows)


def _shuffled(setting: Setting) -> list[Window]:
    order = torch.randperm(len(setting.windows), generator=torch.Generator().manual_seed(0)).tolist()
    return [setting.windows[i] for i in order]


def _batches(setting: Setting) -> Iterator[list[Window]]:
    windows = _shuffled(setting)
    while True:
        for start in range(0, len(windows) - TUTORIAL_BATCH, TUTORIAL_BATCH):
            yield windows[start : start + TUTORIAL_BATCH]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*", help="key.sub=value")
    arguments = parser.parse_args()
    start_distributed()
    setting = prepare(load_recipe(arguments.recipe, arguments.overrides))
    loss = check_agreement(setting)
    console = Console()
    console.print(f"losses and gradients agree, dropout off: {loss:.5f} on {TUTORIAL_BATCH} sentences")

    equal = round(setting.recipe.train.batch_tokens * len(setting.windows) / _tokens(setting.windows))
    runs = {
        "fangyan": fangyan(setting, 5),
        "tutorial loop, padded to 128, batch 16": tutorial(setting, 3),
        "HF Trainer, grouped by length, batch 16": hf_trainer(setting, 30, 16),
        f"HF Trainer, grouped by length, batch {equal}": hf_trainer(setting, 6, equal),
    }
    # The engine has set it; the Trainer would take it for a distributed run and wrap the model in DDP.
    os.environ.pop("LOCAL_RANK")
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():  # warm-up
        run()
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            tokens, seconds = run()
            speeds[name].append(tokens / seconds)

    table = Table("step", "tokens/s, median", "spread", "fangyan is")
    for name, values in speeds.items():
        ratio = statistics.median(ours / other for ours, other in zip(speeds["fangyan"], values, strict=True))
        spread = f"{min(values):,.0f} - {max(values):,.0f}"
        table.add_row(name, f"{statistics.median(values):,.0f}", spread, f"{ratio:.2f}x")
    console.print(table)


if __name__ == "__main__":
    main()
