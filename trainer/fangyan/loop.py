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

from fangyan.adapt.adapters import adapt, check_moved, quantize
from fangyan.adapt.freeze import freeze
from fangyan.checkpoint import Checkpoints, State, read_state
from fangyan.data import load_parts
from fangyan.data.encode import IGNORE, Encoder, Window
from fangyan.data.examples import Example
from fangyan.data.order import epoch_steps, split_step
from fangyan.data.packing import collate, mask_tokens
from fangyan.engine import (
    build_engine,
    check_precision,
    device,
    gathered_state_dict,
    has_fast_bfloat16,
    peak_memory,
    start_distributed,
)
from fangyan.errors import UserError
from fangyan.evaluate import Reader, Tagger
from fangyan.export import export, export_adapter
from fangyan.models import load_causal_model, load_token_classifier, max_length
from fangyan.models.attention import takes_boundaries
from fangyan.models.dropout import use_byte_dropout
from fangyan.models.head import head_name
from fangyan.models.packed import Layout, PackedModel, position_offset
from fangyan.optimizer import check_states, flat_parameters
from fangyan.profile import StepProfile
from fangyan.recipe import Recipe, load_recipe
from fangyan.report import Reporter, score_table
from fangyan.tasks import LanguageModelling, Task, TokenTagging, build_task

Scores = dict[str, float]

# A warm-up's first step has a rate of 0.
_STEPS_THAT_MOVE = 2


@dataclass(frozen=True)
class Result:
    """What a run gave.

    Attributes:
        folder: the run folder.
        before, after: scores, by part of the data; after is of the best checkpoint.
        steps: optimizer steps taken.
        tokens_per_second: sub-words trained on, over the time of the steps alone.
    """

    folder: Path
    before: dict[str, Scores]
    after: dict[str, Scores]
    steps: int
    tokens_per_second: float


def train(recipe: Recipe | str | Path, resume: str | Path | None = None, profile: bool = False) -> Result:
    """Runs a recipe: evaluates, trains, evaluates, exports.

    Args:
        recipe: a recipe, or the path of one.
        resume: ``auto`` goes on from the newest whole checkpoint of the run folder and starts
            afresh if there is none; a path goes on from that checkpoint.
        profile: writes a Chrome trace of a few steps into the run folder, and says what they cost.

    Raises:
        UserError: with one sentence on what to change.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    rank, ranks = start_distributed()
    folder = recipe.folder
    adapter = recipe.adapt.method != "full"
    checkpoints = Checkpoints(folder / "checkpoints", recipe.train.keep_checkpoints, trained_alone=adapter)
    start, notes = _find_start(recipe, checkpoints, resume)
    run = prepare(recipe)
    notes += run.notes
    if start is None:
        state = State(ranks=ranks)
        notes += _clear(folder, rank)
    else:
        state, changes = checkpoints.load(run.engine, start, run.vector_sizes)
        notes += changes
    if rank == 0:
        _write_recipe(recipe, folder)

    with Reporter(folder, rank == 0, None if start is None else state.step) as report:
        for note in [*notes, run.describe(ranks)]:
            report.say(note)
        if not state.before:
            state.before = run.evaluate("dev", "test")
            for part, scores in state.before.items():
                report.record("evaluation", 0, 0, scores, part)
                report.say(f"before  {part:4}  {_format(scores)}")

        meter = _Meter()
        report.start(state.step, run.total_steps)
        trace = folder / "profile" / "trace.json" if profile and rank == 0 else None
        with StepProfile(trace, report) as profiler:
            while state.epoch < recipe.train.epochs and not state.finished:
                _train_epoch(run, state, checkpoints, report, meter, profiler)
                _check_weights(run, state)
                scores = run.evaluate("dev")["dev"]
                report.record("evaluation", state.step, state.epoch + 1, scores, "dev")
                report.say(f"epoch {state.epoch + 1:2}  dev   {_format(scores)}")
                score = scores[run.metric] * (-1 if run.task.lower_is_better else 1)
                best = _end_epoch(state, score, recipe.train.early_stopping)
                checkpoints.save(run.engine, state, best)
        report.stop()

        if state.best_step != state.step:
            checkpoints.load(run.engine, checkpoints.folder / "best", run.vector_sizes)
        after = run.evaluate("dev", "test")
        for part, scores in after.items():
            report.record("evaluation", state.step, state.epoch, scores, f"{part}-best")
        run.export(folder / "model", state.before, after)
        report.show(score_table(state.before, after, run.task.unit))
        report.say(
            f"{state.step} steps, best at {state.best_step}, {meter.tokens_per_second:,.0f} tokens/s, "
            f"peak memory {peak_memory() / 1e9:.2f} GB"
        )
        report.say(f"run folder: {folder}")
    return Result(folder, state.before, after, state.step, meter.tokens_per_second)


@dataclass(frozen=True)
class Run:
    """A recipe made ready to train.

    Attributes:
        windows, lengths: the training data as the model takes it, and its sub-words.
        plan: by epoch, by step, the windows to train on.
    """

    recipe: Recipe
    parts: dict[str, list[Example]]
    task: Task
    metric: str
    tokenizer: Any
    frozen: int
    windows: list[Window]
    lengths: list[int]
    plan: list[list[list[int]]]
    packed: PackedModel
    engine: Any
    optimizer: torch.optim.Optimizer
    evaluator: Tagger | Reader
    notes: list[str]

    @property
    def total_steps(self) -> int:
        return sum(len(steps) for steps in self.plan)

    @property
    def vector_sizes(self) -> list[int]:
        """Of what the optimizer steps on this rank."""
        return [vector.numel() for _, vector in flat_parameters(self.engine, self.optimizer)]

    def evaluate(self, *names: str) -> dict[str, Scores]:
        """Scores of the named parts that the data has. Every rank must call it."""
        self.engine.eval()
        scores = {name: self.evaluator.score(self.parts[name]) for name in names if name in self.parts}
        self.engine.train()
        return scores

    def export(self, folder: Path, before: dict[str, Scores], after: dict[str, Scores]) -> None:
        """Writes plain transformers files, or an adapter's as PEFT has them. Every rank must call it."""
        model = self.packed.model
        adapter = self.recipe.adapt.method != "full"
        weights = gathered_state_dict(self.engine, model, trained_alone=adapter)
        if dist.get_rank() == 0:
            layout: Layout = "rows" if self.recipe.train.packing else "padded"
            prediction = {
                "task": self.task.name,
                "base": self.recipe.adapt.base,
                "tokens": self.recipe.data.tokens,
                "layout": layout,
                "max_length": min(
                    self.evaluator.encoder.max_length, max_length(self.packed.base, None, layout)
                ),
            }
            if isinstance(self.task, TokenTagging):
                prediction["scheme"] = self.task.scheme
            write = export_adapter if adapter else export
            write(folder, model, self.tokenizer, weights, self.recipe, prediction, before, after)
        dist.barrier()

    def describe(self, ranks: int) -> str:
        sizes = ", ".join(f"{name} {len(examples):,}" for name, examples in self.parts.items())
        engine = self.recipe.engine
        return (
            f"{self.recipe.name}: sentences {sizes}; {type(self.packed.base).__name__} on {ranks} x "
            f"{device()}, ZeRO {engine.zero_stage}, {engine.precision}, {self.frozen:,} frozen parameters; "
            f"{self.total_steps:,} steps"
        )


@dataclass(frozen=True)
class Material:
    """What a recipe trains, and on what, before there is an engine; see :class:`Run`."""

    parts: dict[str, list[Example]]
    task: Task
    tokenizer: Any
    frozen: int
    encoder: Encoder
    windows: list[Window]
    lengths: list[int]
    plan: list[list[list[int]]]
    packed: PackedModel
    notes: list[str]

    @property
    def total_steps(self) -> int:
        return sum(len(steps) for steps in self.plan)


def load_material(recipe: Recipe) -> Material:
    """Loads data and model, and lays out every step."""
    check_precision(recipe)
    parts = load_parts(recipe.data, recipe.seed)
    task = build_task(recipe, parts)
    _metric(recipe, task)
    if isinstance(task, TokenTagging):
        model, tokenizer = load_token_classifier(recipe.model, task.labels, recipe.seed)
        classes = len(task.labels)
    else:
        model, tokenizer = load_causal_model(recipe.model, recipe.seed)
        classes = model.get_output_embeddings().out_features
    if recipe.train.token_masking and tokenizer.mask_token_id is None:
        raise UserError(f"train.token_masking: {recipe.model.path!r} has no mask token, expected 0")
    frozen = freeze(model, recipe.freeze)
    layout, notes = _layout(recipe, model)
    encoder = Encoder(tokenizer, max_length(model, recipe.model.max_length, layout))
    windows = [window for group in task.encode(parts["train"], encoder) for window in group]
    lengths = [len(window.input_ids) for window in windows]
    settings = recipe.train
    plan = [
        epoch_steps(lengths, settings.batch_tokens, recipe.seed, epoch) for epoch in range(settings.epochs)
    ]
    # A tagger's head is new and has to be trained; a language model's is part of what is adapted.
    head = head_name(model, classes) if isinstance(task, TokenTagging) else None
    if recipe.adapt.base == "nf4":
        quantize(model, head, torch.bfloat16 if recipe.engine.precision == "bf16" else torch.float32)
    total_steps = sum(len(steps) for steps in plan)
    model = adapt(model, recipe.adapt, task.peft_type, head, total_steps, recipe.engine.kernels)
    if recipe.adapt.method != "full":
        frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    if device().type == "cpu":
        use_byte_dropout(model)
    packed = PackedModel(model, classes, layout, recipe.task.label_smoothing, recipe.engine.kernels)
    if settings.gradient_checkpointing:
        packed.use_gradient_checkpointing()
    return Material(parts, task, tokenizer, frozen, encoder, windows, lengths, plan, packed, notes)


def prepare(recipe: Recipe) -> Run:
    """Loads data and model and builds the engine, within the process group that there is."""
    material = load_material(recipe)
    packed, task, encoder = material.packed, material.task, material.encoder
    engine, optimizer = build_engine(recipe, packed, material.total_steps)
    share = {"rank": dist.get_rank(), "ranks": dist.get_world_size()}
    evaluator: Tagger | Reader
    if isinstance(task, LanguageModelling):
        evaluator = Reader(task, encoder, lambda batch: engine(batch), device(), packed.row_width, **share)
    else:
        evaluator = Tagger(
            task, encoder, lambda batch: engine(batch, with_loss=False), device(), packed.row_width, **share
        )
    return Run(
        recipe=recipe,
        parts=material.parts,
        task=task,
        metric=_metric(recipe, task),
        tokenizer=material.tokenizer,
        frozen=material.frozen,
        windows=material.windows,
        lengths=material.lengths,
        plan=material.plan,
        packed=packed,
        engine=engine,
        optimizer=optimizer,
        evaluator=evaluator,
        notes=_unseen_tags(material.parts) + _slow_precision(recipe, device()) + material.notes,
    )


def _unseen_tags(parts: dict[str, list[Example]]) -> list[str]:
    """A line on the tags that cannot be learned: a typing mistake, or a rare tag."""
    tags = {name: {tag for example in part for tag in example.tags or ()} for name, part in parts.items()}
    unseen = sorted(set().union(*tags.values()) - tags["train"])
    return [f"tags that train never shows: {', '.join(unseen)}"] if unseen else []


def _slow_precision(recipe: Recipe, where: torch.device) -> list[str]:
    """A line where bf16 takes longer than fp32: on processors whose products of bfloat16 are emulated."""
    if where.type != "cpu" or recipe.engine.precision != "bf16" or has_fast_bfloat16():
        return []
    return [
        "engine.precision: bf16 is slower than fp32 on this processor, which has neither AVX512-BF16 nor AMX"
    ]


def _train_epoch(
    run: Run,
    state: State,
    checkpoints: Checkpoints,
    report: Reporter,
    meter: _Meter,
    profiler: StepProfile,
) -> None:
    """The rest of the state's epoch, with checkpoints on the way."""
    settings = run.recipe.train
    losses = _Losses(report, state)
    steps = run.plan[state.epoch]
    while state.step_in_epoch < len(steps):
        step = steps[state.step_in_epoch]
        rate = max(group["lr"] for group in run.optimizer.param_groups)
        meter.start()
        loss = train_step(run, step, state.step)
        if left := getattr(run.optimizer, "num_skipped", 0):
            report.say(
                f"step {state.step + 1}: {left:,} numbers have no finite gradient and stay as they are"
            )
        if state.step_in_epoch == 0:
            check_states(run.engine, run.optimizer)
        if state.step == _STEPS_THAT_MOVE:
            check_moved(run.packed)
        state.step += 1
        state.step_in_epoch += 1
        losses.add(loss, rate, getattr(run.optimizer, "num_skipped", 0))
        at_end = state.step_in_epoch == len(steps)
        every = settings.checkpoint_every
        save = every is not None and state.step % every == 0 and not at_end
        read = state.step % settings.log_every == 0 or at_end or save
        mean = losses.flush() if read else None
        meter.stop(sum(run.lengths[i] for i in step))
        profiler.step()
        report.advance(state.step, state.epoch, mean, meter.tokens_per_second)
        if save:
            _check_weights(run, state)
            checkpoints.save(run.engine, state)


def _check_weights(run: Run, state: State) -> None:
    """No checkpoint, and no score, of weights that an overflow has spoilt; every rank calls it."""
    tensors = [tensor for _, tensor in flat_parameters(run.engine, run.optimizer)]
    finite = torch.stack([tensor.detach().isfinite().all() for tensor in tensors]).all().float()
    dist.all_reduce(finite, op=dist.ReduceOp.MIN)
    if not finite:
        raise UserError(
            f"optimizer.lr: the weights are not finite after step {state.step}, expected finite numbers; "
            "start a new run with a smaller rate; earlier checkpoints are whole"
        )


def train_step(run: Run, step: list[int], number: int) -> torch.Tensor:
    """One optimizer step on this rank's shares of the windows ``step``; gives its part of the mean loss.

    ``number`` counts the run's steps: dropout and masking follow it.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    settings, engine = run.recipe.train, run.engine
    passes = settings.gradient_accumulation_steps
    shares = split_step(step, run.lengths, ranks * passes)
    labelled = sum(target != IGNORE for i in step for target in run.windows[i].targets)
    total = torch.zeros((), device=device())
    for number_of_pass in range(passes):
        share = rank * passes + number_of_pass
        # Dropout follows the share, not the rank: one rank with two passes and two ranks with one
        # draw the same masks, and a resumed run needs no generator's state.
        torch.manual_seed(zlib.crc32(f"{run.recipe.seed}/{number}/{share}".encode()))
        chosen = [run.windows[i] for i in shares[share]]
        batch = collate(chosen, run.tokenizer.pad_token_id, run.packed.row_width)
        if settings.token_masking:
            batch = mask_tokens(batch, settings.token_masking, run.tokenizer.mask_token_id)
        # DeepSpeed divides by the ranks and the passes; the loss is divided by all their tokens already.
        loss = engine(batch.to(device()), divisor=max(labelled, 1) / (ranks * passes))
        engine.backward(loss)
        if run.recipe.adapt.method == "adalora" and number_of_pass == passes - 1:
            run.packed.model.base_model.update_and_allocate(number)
        engine.step()
        total += loss.detach()
    return total / (ranks * passes)


class _Losses:
    """Losses since the last read: reading one stalls a GPU, so they are read some steps at a time."""

    def __init__(self, report: Reporter, state: State):
        self._report, self._state = report, state
        self._pending: list[tuple[int, torch.Tensor, float, int]] = []

    def add(self, loss: torch.Tensor, rate: float, left: int) -> None:
        """``left``: weights of this rank that an 8-bit optimizer left as they were."""
        self._pending.append((self._state.step, loss, rate, left))

    def flush(self) -> float:
        """Records the pending steps; gives their mean loss.

        Raises:
            UserError: if a loss is not finite.
        """
        losses = torch.stack([loss.float() for _, loss, _, _ in self._pending])
        lefts = losses.new_tensor([left for *_, left in self._pending])
        both = torch.stack([losses, lefts])
        if dist.get_world_size() > 1:
            dist.all_reduce(both)
        values = both[0].tolist()
        for (step, _, rate, _), loss, left in zip(self._pending, values, both[1].tolist(), strict=True):
            if left:
                self._report.say(
                    f"step {step}: {left:,.0f} weights have no finite gradient and stay as they are"
                )
            if not math.isfinite(loss):
                raise UserError(
                    f"optimizer.lr: the loss is {loss} at step {step} with a rate of {rate:.2g}, expected a "
                    "finite number; start a new run with a smaller rate or a longer schedule.warmup; "
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
    """The checkpoint to go on from, if any, and what to tell about it.

    Rank 0 decides for all: on a shared disk another rank may see a file later.
    """
    found: list[Any] = [None, [], None]
    if dist.get_rank() == 0 and resume is not None:
        try:
            found[:2] = _look_for_start(recipe, checkpoints, resume)
        except UserError as error:
            found[2] = str(error)
    dist.broadcast_object_list(found)
    start, notes, mistake = found
    if mistake is not None:
        raise UserError(mistake)
    return start, notes


def _look_for_start(
    recipe: Recipe, checkpoints: Checkpoints, resume: str | Path
) -> tuple[Path | None, list[str]]:
    notes: list[str] = []
    if str(resume) == "auto":
        start, complaints = checkpoints.newest()
        notes += [f"passed over: {complaint}" for complaint in complaints]
        if start is None:
            return None, [*notes, f"nothing to resume in {checkpoints.folder}: starting afresh"]
    else:
        start = Path(resume).resolve()
        if not start.is_dir():
            raise UserError(f"--resume {resume}: no such checkpoint, expected auto or a folder")
    state = read_state(start)
    _check_same_recipe(recipe, start.parents[1] / "recipe.yaml")
    return start, [*notes, f"resuming {start} at step {state.step}"]


def _check_same_recipe(recipe: Recipe, path: Path) -> None:
    """A run goes on only with the recipe that it began with: anything else would not be exact."""
    old, new = load_recipe(path).model_dump(mode="json"), recipe.model_dump(mode="json")
    for section in new:
        if section == "run_dir" or old[section] == new[section]:
            continue
        before, after = old[section], new[section]
        if isinstance(after, dict):
            key = next(key for key in after if before[key] != after[key])
            section, before, after = f"{section}.{key}", before[key], after[key]
        raise UserError(
            f"{path}: the run has {section}={before}, the recipe {after}; expected the same to resume, "
            "or another run_dir"
        )


def _write_recipe(recipe: Recipe, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / ".recipe.yaml"
    partial.write_text(recipe.to_yaml())
    partial.replace(folder / "recipe.yaml")


def _clear(folder: Path, rank: int) -> list[str]:
    """Moves an earlier run out of the way: nothing finished is ever lost."""
    notes = []
    if rank == 0 and folder.exists() and any(folder.iterdir()):
        if not (folder / "recipe.yaml").is_file():
            raise UserError(f"run_dir: {folder} holds files but no run, expected an empty or a new folder")
        number = 1
        while folder.with_name(f"{folder.name}.{number}").exists():
            number += 1
        folder.rename(folder.with_name(f"{folder.name}.{number}"))
        notes.append(f"the earlier run is kept as {folder}.{number}")
    dist.barrier()
    return notes


def _layout(recipe: Recipe, model: Any) -> tuple[Layout, list[str]]:
    """How batches are laid out, and a line where that is not what this machine does fastest."""
    if not recipe.train.packing:
        return "padded", []
    if device().type == "cuda":  # PyTorch's variable-length kernel takes 16-bit numbers
        return ("varlen" if recipe.engine.precision == "bf16" else "rows"), []
    if recipe.model.attention_dropout:
        reason = "model.attention_dropout is not 0"
    elif not takes_boundaries(model, position_offset(model)):
        reason = f"{type(model).__name__} caps its scores, or does not pass boundaries on to its attention"
    else:
        return "varlen", []
    return "rows", [f"train.packing: sequences are kept apart by masks, which is slower: {reason}"]


def _metric(recipe: Recipe, task: Task) -> str:
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
