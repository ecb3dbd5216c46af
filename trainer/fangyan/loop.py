"""The train loop: recipe in, run folder out."""

from __future__ import annotations

import math
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml

from fangyan.adapt.freeze import freeze
from fangyan.checkpoint import Checkpoints, State, read_state
from fangyan.data import load_parts
from fangyan.data.encode import IGNORE, Encoder, Window
from fangyan.data.examples import Example
from fangyan.data.order import epoch_steps, split_step
from fangyan.data.packing import collate, mask_tokens
from fangyan.engine import build_engine, device, gathered_state_dict, peak_memory, start_distributed
from fangyan.errors import UserError
from fangyan.evaluate import Tagger
from fangyan.export import export
from fangyan.models import load_token_classifier, max_length
from fangyan.models.dropout import use_byte_dropout
from fangyan.models.packed import Layout, PackedModel
from fangyan.optimizer import check_states
from fangyan.recipe import Recipe, load_recipe
from fangyan.report import Reporter
from fangyan.tasks.token_tagging import TokenTagging

Scores = dict[str, float]


@dataclass(frozen=True)
class Result:
    """What a run gave.

    Attributes:
        folder: the run folder.
        before, after: scores in percent, by part of the data; after is of the best checkpoint.
        steps: optimizer steps taken.
        tokens_per_second: sub-words trained on, over the time of the steps alone.
    """

    folder: Path
    before: dict[str, Scores]
    after: dict[str, Scores]
    steps: int
    tokens_per_second: float


def train(recipe: Recipe | str | Path, resume: str | Path | None = None) -> Result:
    """Runs a recipe: evaluates, trains, evaluates, exports.

    Args:
        recipe: a recipe, or the path of one.
        resume: ``auto`` goes on from the newest whole checkpoint of the run folder and starts
            afresh if there is none; a path goes on from that checkpoint.

    Raises:
        UserError: with one sentence on what to change.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    rank, ranks = start_distributed()
    folder = recipe.folder
    checkpoints = Checkpoints(folder / "checkpoints", recipe.train.keep_checkpoints)
    start, notes = _find_start(recipe, checkpoints, resume)
    run = _prepare(recipe)
    state = State(ranks=ranks) if start is None else checkpoints.load(run.engine, start)
    if start is None:
        notes += _clear(folder, rank)

    with Reporter(folder, rank == 0, None if start is None else state.step) as report:
        if rank == 0:
            (folder / "recipe.yaml").write_text(recipe.to_yaml())
        for note in [*notes, run.describe(ranks)]:
            report.say(note)
        if not state.before:
            state.before = run.evaluate("dev", "test")
            for part, scores in state.before.items():
                report.record("evaluation", 0, 0, scores, part)
                report.say(f"before  {part:4}  {_format(scores)}")

        meter = _Meter()
        report.start(state.step, run.total_steps)
        while state.epoch < recipe.train.epochs and not state.finished:
            _train_epoch(run, state, checkpoints, report, meter)
            scores = run.evaluate("dev")["dev"]
            report.record("evaluation", state.step, state.epoch + 1, scores, "dev")
            report.say(f"epoch {state.epoch + 1:2}  dev   {_format(scores)}")
            best = _end_epoch(state, scores[run.metric], recipe.train.early_stopping)
            checkpoints.save(run.engine, state, best)
        report.stop()

        if state.best_step != state.step:
            checkpoints.load(run.engine, checkpoints.folder / "best", weights_only=True)
        after = run.evaluate("dev", "test")
        for part, scores in after.items():
            report.record("evaluation", state.step, state.epoch, scores, f"{part}-best")
        run.export(folder / "model", state.before, after)
        report.table(state.before, after)
        report.say(
            f"{state.step} steps, best at {state.best_step}, {meter.tokens_per_second:,.0f} tokens/s, "
            f"peak memory {peak_memory() / 1e9:.2f} GB"
        )
        report.say(f"run folder: {folder}")
    return Result(folder, state.before, after, state.step, meter.tokens_per_second)


@dataclass(frozen=True)
class _Run:
    """A recipe made ready to train."""

    recipe: Recipe
    parts: dict[str, list[Example]]
    task: TokenTagging
    metric: str
    tokenizer: Any
    frozen: int
    windows: list[Window]
    lengths: list[int]
    plan: list[list[list[int]]]
    packed: PackedModel
    engine: Any
    optimizer: torch.optim.Optimizer
    tagger: Tagger

    @property
    def total_steps(self) -> int:
        return sum(len(steps) for steps in self.plan)

    def evaluate(self, *names: str) -> dict[str, Scores]:
        """Scores of the named parts that the data has. Every rank must call it."""
        self.engine.eval()
        scores = {name: self.tagger.score(self.parts[name]) for name in names if name in self.parts}
        self.engine.train()
        return scores

    def export(self, folder: Path, before: dict[str, Scores], after: dict[str, Scores]) -> None:
        """Writes the model as plain transformers files. Every rank must call it."""
        model = self.packed.model
        weights = gathered_state_dict(self.engine, model)
        if dist.get_rank() == 0:
            export(folder, model, self.tokenizer, weights, self.recipe, self.task.scheme, before, after)
        dist.barrier()

    def describe(self, ranks: int) -> str:
        sizes = ", ".join(f"{name} {len(examples):,}" for name, examples in self.parts.items())
        engine = self.recipe.engine
        return (
            f"{self.recipe.name}: sentences {sizes}; {type(self.packed.model).__name__} on {ranks} x "
            f"{device()}, ZeRO {engine.zero_stage}, {engine.precision}, {self.frozen:,} frozen parameters; "
            f"{self.total_steps:,} steps"
        )


def _prepare(recipe: Recipe) -> _Run:
    parts = load_parts(recipe.data, recipe.seed)
    task = TokenTagging.from_data(recipe.task, parts)
    for example in (example for part in parts.values() for example in part):
        task.classes(example)
    metric = _metric(recipe, task)
    model, tokenizer = load_token_classifier(recipe.model, task.labels, recipe.seed)
    if recipe.train.token_masking and tokenizer.mask_token_id is None:
        raise UserError(f"train.token_masking: {recipe.model.path!r} has no mask token, expected 0")
    frozen = freeze(model, recipe.freeze)
    encoder = Encoder(tokenizer, max_length(model, recipe.model))
    windows = [window for group in task.encode(parts["train"], encoder) for window in group]
    lengths = [len(window.input_ids) for window in windows]
    settings = recipe.train
    plan = [
        epoch_steps(lengths, settings.batch_tokens, recipe.seed, epoch) for epoch in range(settings.epochs)
    ]
    if device().type == "cpu":
        use_byte_dropout(model)
    packed = PackedModel(model, len(task.labels), _layout(recipe), recipe.task.label_smoothing)
    engine, optimizer = build_engine(recipe, packed, sum(len(steps) for steps in plan))
    tagger = Tagger(task, encoder, lambda batch: engine(batch, with_loss=False), device(), packed.row_width)
    return _Run(
        recipe=recipe,
        parts=parts,
        task=task,
        metric=metric,
        tokenizer=tokenizer,
        frozen=frozen,
        windows=windows,
        lengths=lengths,
        plan=plan,
        packed=packed,
        engine=engine,
        optimizer=optimizer,
        tagger=tagger,
    )


def _train_epoch(run: _Run, state: State, checkpoints: Checkpoints, report: Reporter, meter: _Meter) -> None:
    """The rest of the state's epoch, with checkpoints on the way."""
    settings = run.recipe.train
    losses = _Losses(report, state)
    steps = run.plan[state.epoch]
    while state.step_in_epoch < len(steps):
        step = steps[state.step_in_epoch]
        rate = run.optimizer.param_groups[0]["lr"]
        meter.start()
        loss = train_step(
            run.engine, run.recipe, run.windows, run.lengths, step, state.step, run.tokenizer, run.packed
        )
        if state.step == 0:
            check_states(run.engine, run.optimizer)
        state.step += 1
        state.step_in_epoch += 1
        losses.add(loss, rate)
        at_end = state.step_in_epoch == len(steps)
        every = settings.checkpoint_every
        save = every is not None and state.step % every == 0 and not at_end
        read = state.step % settings.log_every == 0 or at_end or save
        mean = losses.flush() if read else None
        meter.stop(sum(run.lengths[i] for i in step))
        report.advance(state.step, state.epoch, mean, meter.tokens_per_second)
        if save:
            checkpoints.save(run.engine, state)


def train_step(
    engine: Any,
    recipe: Recipe,
    windows: list[Window],
    lengths: list[int],
    step: list[int],
    number: int,
    tokenizer: Any,
    packed: PackedModel,
) -> torch.Tensor:
    """One optimizer step on this rank's shares; gives its part of the step's mean loss."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    passes = recipe.train.gradient_accumulation_steps
    shares = split_step(step, lengths, ranks * passes)
    labelled = sum(target != IGNORE for i in step for target in windows[i].targets)
    total = torch.zeros((), device=device())
    for i in range(passes):
        share = rank * passes + i
        # Dropout follows the share, not the rank: one rank with two passes and two ranks with one
        # draw the same masks, and a resumed run needs no generator's state.
        torch.manual_seed(zlib.crc32(f"{recipe.seed}/{number}/{share}".encode()))
        batch = collate([windows[j] for j in shares[share]], tokenizer.pad_token_id, packed.row_width)
        if recipe.train.token_masking:
            batch = mask_tokens(batch, recipe.train.token_masking, tokenizer.mask_token_id)
        loss = engine(batch.to(device())) / max(labelled, 1)
        # DeepSpeed divides by the ranks and the passes; the loss is divided by its tokens already.
        engine.backward(loss * (ranks * passes))
        engine.step()
        total += loss.detach()
    return total


class _Losses:
    """Losses since the last read: reading one stalls a GPU, so they are read some steps at a time."""

    def __init__(self, report: Reporter, state: State):
        self._report, self._state = report, state
        self._pending: list[tuple[int, torch.Tensor, float]] = []

    def add(self, loss: torch.Tensor, rate: float) -> None:
        self._pending.append((self._state.step, loss, rate))

    def flush(self) -> float:
        """Records the pending steps; gives their mean loss.

        Raises:
            UserError: if a loss is not finite.
        """
        losses = torch.stack([loss for _, loss, _ in self._pending])
        if dist.get_world_size() > 1:
            dist.all_reduce(losses)
        values = losses.tolist()
        for (step, _, rate), loss in zip(self._pending, values, strict=True):
            if not math.isfinite(loss):
                raise UserError(
                    f"optimizer.lr: the loss is {loss} at step {step} with a rate of {rate:.2g}, expected a "
                    "finite number; a smaller rate or a longer schedule.warmup helps; "
                    "earlier checkpoints are whole"
                )
            self._report.record("train", step, self._state.epoch, {"loss": loss, "lr": rate})
        self._pending.clear()
        return sum(values) / len(values)


class _Meter:
    """Tokens a second over the steps alone."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._tokens = 0
        self._started = 0.0

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self, tokens: int) -> None:
        self._seconds += time.perf_counter() - self._started
        self._tokens += tokens

    @property
    def tokens_per_second(self) -> float:
        return self._tokens / self._seconds if self._seconds else 0.0


def _end_epoch(state: State, score: float, patience: int | None) -> bool:
    """Moves the state to the next epoch; tells whether this one was the best."""
    best = state.best_score is None or score > state.best_score
    if best:
        state.best_score, state.best_step, state.epochs_without_gain = score, state.step, 0
    else:
        state.epochs_without_gain += 1
    state.epoch += 1
    state.step_in_epoch = 0
    state.finished = patience is not None and state.epochs_without_gain >= patience
    return best


def _find_start(
    recipe: Recipe, checkpoints: Checkpoints, resume: str | Path | None
) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, if any, and what to tell about it."""
    if resume is None:
        return None, []
    notes: list[str] = []
    if str(resume) == "auto":
        start, complaints = checkpoints.newest()
        notes += [f"passed over: {complaint}" for complaint in complaints]
        if start is None:
            return None, [*notes, f"nothing to resume in {checkpoints.folder}: starting afresh"]
    else:
        start = Path(resume)
        if not start.is_dir():
            raise UserError(f"--resume {resume}: no such checkpoint, expected auto or a folder")
    state = read_state(start)
    _check_same_recipe(recipe)
    return start, [*notes, f"resuming {start} at step {state.step}"]


def _check_same_recipe(recipe: Recipe) -> None:
    """A run goes on only with the recipe that it began with: anything else would not be exact."""
    path = recipe.folder / "recipe.yaml"
    if not path.exists():
        return
    old, new = yaml.safe_load(path.read_text()), recipe.model_dump(mode="json")
    for section in new:
        if section == "run_dir" or old.get(section) == new[section]:
            continue
        before, after = old.get(section), new[section]
        if isinstance(after, dict) and isinstance(before, dict):
            key = next(key for key in after if before.get(key) != after[key])
            section, before, after = f"{section}.{key}", before.get(key), after[key]
        raise UserError(
            f"{path}: the run has {section}={before}, the recipe {after}; expected the same to resume, "
            "or another run_dir"
        )


def _clear(folder: Path, rank: int) -> list[str]:
    """Moves an earlier run out of the way: nothing finished is ever lost."""
    notes = []
    if rank == 0 and folder.exists() and any(folder.iterdir()):
        number = 1
        while folder.with_name(f"{folder.name}.{number}").exists():
            number += 1
        folder.rename(folder.with_name(f"{folder.name}.{number}"))
        notes.append(f"the earlier run is kept as {folder}.{number}")
    dist.barrier()
    return notes


def _layout(recipe: Recipe) -> Layout:
    if not recipe.train.packing:
        return "padded"
    # The variable-length kernel takes 16-bit numbers on a GPU; elsewhere short rows measure best.
    return "varlen" if device().type == "cuda" and recipe.engine.precision == "bf16" else "rows"


def _metric(recipe: Recipe, task: TokenTagging) -> str:
    if recipe.train.metric == "auto":
        return task.metric
    if recipe.train.metric not in task.score_names:
        raise UserError(
            f"train.metric: {recipe.train.metric!r} is no score of this task, expected one of "
            f"{', '.join(task.score_names)}"
        )
    return recipe.train.metric


def _format(scores: Scores) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in scores.items())
