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
from fangyan.data.packing import collate
from fangyan.engine import build_engine, device, gathered_state_dict, peak_memory, start_distributed
from fangyan.errors import UserError
from fangyan.evaluate import Tagger
from fangyan.export import export
from fangyan.models import load_token_classifier, max_length
from fangyan.models.dropout import use_byte_dropout
from fangyan.models.packed import Layout, PackedModel
from fangyan.optimizer import check_states
from fangyan.recipe import Recipe, load_recipe
from fangyan.report import Reporter, memory_in_use
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
    if start is None:
        notes += _clear(folder, rank)

    parts = load_parts(recipe.data, recipe.seed)
    task = TokenTagging.from_data(recipe.task, parts)
    for example in (example for part in parts.values() for example in part):
        task.classes(example)
    metric = _metric(recipe, task)
    model, tokenizer = load_token_classifier(recipe.model, task.labels, recipe.seed)
    frozen = freeze(model, recipe.freeze)
    encoder = Encoder(tokenizer, max_length(model, recipe.model))
    windows = [window for group in task.encode(parts["train"], encoder) for window in group]
    lengths = [len(window.input_ids) for window in windows]
    plan = [
        epoch_steps(lengths, recipe.train.batch_tokens, recipe.seed, epoch) for epoch in range(recipe.train.epochs)
    ]
    total_steps = sum(len(steps) for steps in plan)
    if device().type == "cpu":
        use_byte_dropout(model)
    packed = PackedModel(model, len(task.labels), _layout(recipe), recipe.task.label_smoothing)
    engine, optimizer = build_engine(recipe, packed, total_steps)
    tagger = Tagger(
        task, encoder, lambda batch: engine(batch, with_loss=False), device(), packed.row_width
    )

    state = State(ranks=ranks)
    if start is not None:
        state = checkpoints.load(engine, start)
    with Reporter(folder, rank == 0, state.step if start is not None else None) as report:
        if rank == 0:
            (folder / "recipe.yaml").write_text(recipe.to_yaml())
        for note in notes:
            report.say(note)
        report.say(_describe(recipe, parts, model, frozen, total_steps, ranks))
        if not state.before:
            state.before = _evaluate(engine, tagger, parts, ("dev", "test"))
            for part, scores in state.before.items():
                report.record("evaluation", 0, 0, scores, part)
                report.say(f"before  {part:4}  {_format(scores)}")

        steps_run = _Meter()
        report.start(state.step, total_steps)
        while state.epoch < recipe.train.epochs and not state.finished:
            losses = _Losses(report, engine, state)
            engine.train()
            steps = plan[state.epoch]
            while state.step_in_epoch < len(steps):
                # Every rank knows every share, and so the number of labelled tokens over all ranks
                # and accumulation steps: the divisor of the loss needs no communication.
                steps_run.start()
                step = steps[state.step_in_epoch]
                rate = optimizer.param_groups[0]["lr"]
                loss = _step(engine, recipe, windows, lengths, step, state.step, tokenizer.pad_token_id, packed)
                if state.step == 0:
                    check_states(engine, optimizer)
                state.step += 1
                state.step_in_epoch += 1
                tokens = sum(lengths[i] for i in step)
                state.tokens += tokens
                losses.add(loss, rate)
                at_end = state.step_in_epoch == len(steps)
                every = recipe.train.checkpoint_every
                save = every is not None and state.step % every == 0 and not at_end
                if state.step % recipe.train.log_every == 0 or at_end or save:
                    mean = losses.flush()
                    steps_run.stop(tokens)
                    speed = steps_run.tokens_per_second
                    status = f"loss {mean:.3f}  {speed:,.0f} tokens/s  {memory_in_use() / 1e9:.2f} GB"
                    report.advance(state.step, state.epoch, status)
                else:
                    steps_run.stop(tokens)
                    report.advance(state.step, state.epoch)
                if save:
                    checkpoints.save(engine, state)
            scores = _evaluate(engine, tagger, parts, ("dev",))["dev"]
            report.record("evaluation", state.step, state.epoch + 1, scores, "dev")
            report.say(f"epoch {state.epoch + 1:2}  dev   {_format(scores)}")
            best = _end_epoch(state, scores[metric], recipe.train.early_stopping)
            checkpoints.save(engine, state, best)
        report.pause()

        if state.best_step != state.step:
            checkpoints.load(engine, checkpoints.folder / "best", weights_only=True)
        after = _evaluate(engine, tagger, parts, ("dev", "test"))
        for part, scores in after.items():
            report.record("evaluation", state.step, state.epoch, scores, f"{part}-best")
        weights = gathered_state_dict(engine, packed.model)
        if rank == 0:
            export(folder / "model", packed.model, tokenizer, weights, recipe, task.scheme, state.before, after)
        dist.barrier()
        report.table(state.before, after)
        report.say(
            f"{state.step} steps, best at {state.best_step}, {steps_run.tokens_per_second:,.0f} tokens/s, "
            f"peak memory {peak_memory() / 1e9:.2f} GB"
        )
        report.say(f"run folder: {folder}")
    return Result(folder, state.before, after, state.step, steps_run.tokens_per_second)


def _step(
    engine: Any,
    recipe: Recipe,
    windows: list[Window],
    lengths: list[int],
    step: list[int],
    number: int,
    pad_id: int,
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
        batch = collate([windows[j] for j in shares[share]], pad_id, packed.row_width).to(device())
        loss = engine(batch) / max(labelled, 1)
        # DeepSpeed divides by the ranks and the passes; the loss is divided by its tokens already.
        engine.backward(loss * (ranks * passes))
        engine.step()
        total += loss.detach()
    return total


class _Losses:
    """Losses since the last read: reading one stalls a GPU, so they are read some steps at a time."""

    def __init__(self, report: Reporter, engine: Any, state: State):
        self._report, self._engine, self._state = report, engine, state
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
                    f"optimizer.lr: the loss is {loss} at step {step} with a rate of {rate:.2g}, expected a finite "
                    "number; a smaller rate or a longer schedule.warmup helps; earlier checkpoints are whole"
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


def _evaluate(engine: Any, tagger: Tagger, parts: dict[str, list[Example]], names: tuple[str, ...]) -> dict[str, Scores]:
    engine.eval()
    scores = {name: tagger.score(parts[name]) for name in names if name in parts}
    engine.train()
    return scores


def _find_start(recipe: Recipe, checkpoints: Checkpoints, resume: str | Path | None) -> tuple[Path | None, list[str]]:
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


def _describe(
    recipe: Recipe, parts: dict[str, list[Example]], model: Any, frozen: int, total_steps: int, ranks: int
) -> str:
    sizes = ", ".join(f"{name} {len(examples):,}" for name, examples in parts.items())
    return (
        f"{recipe.name}: sentences {sizes}; {type(model).__name__} on {ranks} x {device()}, "
        f"ZeRO {recipe.engine.zero_stage}, {recipe.engine.precision}, {frozen:,} frozen parameters; "
        f"{total_steps:,} steps"
    )
