"""The trainer: the steps of a run, from its data and model to the export."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from fangyan.data.batching import micro_batches
from fangyan.device import device, memory_in_use
from fangyan.distributed.process_group import (
    gathered,
    largest_peak_memory,
    report_step,
)
from fangyan.distributed.signals import StopSignals, Votes, exit_code
from fangyan.errors import RESUMING, Diverged, Stopped
from fangyan.inference.run_records import BEST
from fangyan.optimizers.states import assert_full_precision_states, flat_parameters
from fangyan.reporting.predictions import BEST_REPORT
from fangyan.tasks.task import Metrics
from fangyan.trackers.callback import Callback
from fangyan.training import run_report
from fangyan.training.advice import closing_words
from fangyan.training.engine import backward, build_engine
from fangyan.training.floor import below_the_floor
from fangyan.training.following import listeners
from fangyan.training.forgetting import forgetting
from fangyan.training.logger import Logger, StepLog, format_metrics, metrics_table
from fangyan.training.objective_run import objective_run
from fangyan.training.on_epoch import OnEpoch, go_on
from fangyan.training.profiler import StepProfile
from fangyan.training.run_folder import RunFolder, Start
from fangyan.training.scoring import ScoredWorkload
from fangyan.training.state import State


@dataclass(frozen=True)
class Result:
    """What a run returns.

    Attributes:
        folder: the run folder.
        before: metrics per split before training.
        after: metrics per split of the best checkpoint; none where ``on_epoch`` has ended the run.
        steps: optimizer steps taken.
        tokens_per_second: sub-words trained on, over the time of the steps alone.
    """

    folder: Path
    before: dict[str, Metrics]
    after: dict[str, Metrics]
    steps: int
    tokens_per_second: float


class Trainer(ScoredWorkload):
    """Trains what a recipe says: :meth:`start_engine`, then :meth:`fit`. Every rank makes one."""

    def start_engine(self, state: State | None = None) -> None:
        """Build the DeepSpeed engine and the optimizer, within the process group that there is.

        Args:
            state: of the run that resumes: its steps keep their micro-batches, which dropout follows, where
                this number of ranks divides them.
        """
        ranks = dist.get_world_size()
        self.accumulation = self.recipe.train.gradient_accumulation_steps
        if state is not None and state.micro_batches % ranks == 0:
            self.accumulation = state.micro_batches // ranks
        elif state is not None:
            self.messages.append(
                f"{state.micro_batches} micro-batches per step, which {ranks} ranks do not divide, become "
                f"{ranks * self.accumulation}: dropout draws other masks from here on"
            )
        self.engine, self.optimizer = build_engine(
            self.recipe, self.model, self.total_steps, self.accumulation, self.new_parameters
        )

    def fit(
        self,
        folder: RunFolder,
        start: Start,
        profile: bool = False,
        signals: StopSignals | None = None,
        on_epoch: OnEpoch = go_on,
        callbacks: Sequence[Callback] = (),
    ) -> Result:
        """Train from where ``start`` says to the end, and export the best checkpoint.

        Nothing is exported where ``on_epoch`` ends the run.

        Raises:
            Stopped: if a signal ended the run, which can be resumed.
        """
        self.folder = folder
        self.signals = signals or StopSignals()
        self.state, messages = self._start_or_resume(start)
        state = None if start.checkpoint is None else self.state
        trace = folder.path / "profile" / "trace.json" if profile and dist.get_rank() == 0 else None
        with (
            Logger(folder.path, dist.get_rank() == 0, state) as self.logger,
            listeners(self.recipe, callbacks, state, self.logger.warning) as self.logger.listeners,
        ):
            self._announce([*start.messages, *messages, *map(str, self.findings), *self.messages])
            run_report.begin(self)
            self._evaluate_before()
            with StepProfile(trace, self.logger) as profiler:
                while self._has_steps(self.state):
                    self._train_epoch(profiler)
                    if not self._end_epoch(on_epoch):
                        self._log_time()
                        return self._result({})
            result = self._finish()
            self.logger.listeners.result = result.after
            return result

    def _start_or_resume(self, start: Start) -> tuple[State, list[str]]:
        if start.state is None or self._has_steps(start.state):
            self.folder.checkpoints.assert_room(self._least_checkpoint())
        if start.checkpoint is None:
            checkpoint, messages = None, self.folder.claim()
        else:
            checkpoint, messages = self.folder.undamaged(start)
        self.folder.write_inputs(self.recipe, self.splits)
        self.prepared = self.recipe.objective.start(objective_run(self))
        messages += self.prepared.messages
        if checkpoint is None:
            state = State()
        else:
            state, more = self._load(checkpoint)
            messages += [f"resuming {checkpoint} at step {state.step}", *more, *self._check_best(state)]
        state.ranks = dist.get_world_size()
        state.micro_batches = state.ranks * self.accumulation
        self._saved_step, self._saved_at = state.step, time.monotonic()
        return state, messages

    def _has_steps(self, state: State) -> bool:
        return state.epoch < self.recipe.train.epochs and not state.finished

    def _least_checkpoint(self) -> int:
        """Return the bytes of weights and optimizer states in a checkpoint."""
        optimizer, stage = self.recipe.optimizer, self.recipe.engine.zero_stage
        per_element = 4 + optimizer.states_per_parameter * (1 if optimizer.has_8bit_states else 4)
        elements = gathered(sum(self.vector_sizes))
        return per_element * (sum(elements) if stage else elements[0])

    def _check_best(self, state: State) -> list[str]:
        """Forget a best checkpoint that is gone or damaged, while later ones can still take its place."""
        messages: list[str] = []
        if state.best_step is not None and state.best_step != state.step:
            checkpoints = self.folder.checkpoints
            problem = checkpoints.problem(checkpoints.path(state.best_step), messages)
            if problem is not None:
                state.forget_best()
                messages.append(
                    f"the best checkpoint is lost, and the best from here on takes its place: {problem}"
                )
        return messages

    @property
    def vector_sizes(self) -> list[int]:
        """Return the sizes of the vectors that the optimizer steps on this rank."""
        return [vector.numel() for _, vector in flat_parameters(self.engine, self.optimizer)]

    def _announce(self, messages: list[str]) -> None:
        engine = self.recipe.engine
        sizes = ", ".join(f"{name} {len(examples):,}" for name, examples in self.splits.items())
        for message in messages:
            self.logger.warning(message)
        self.logger.info(
            f"{self.recipe.name}: examples {sizes}; {type(self.model.base).__name__} on "
            f"{dist.get_world_size()} x {device()}, ZeRO {engine.zero_stage}, {engine.precision}, "
            f"{self.num_frozen:,} frozen parameters; {self.total_steps:,} step{'s' * (self.total_steps != 1)}"
        )

    def _evaluate_before(self) -> None:
        self.log = StepLog(self.logger)
        self.clock.loaded()
        if not self.state.before:
            self.state.before = {**self.evaluate("dev", "test"), **self.evaluate_data_sets()}
            for split, metrics in self.state.before.items():
                self.logger.metrics("evaluation", 0, 0, metrics, split)
                self.logger.info(f"before  {split:4}  {format_metrics(metrics)}")
        self.logger.start_progress(self.state.step, self.total_steps)

    def _train_epoch(self, profiler: StepProfile) -> None:
        """Train the rest of the state's epoch, with checkpoints on the way and at its end."""
        state, config = self.state, self.recipe.train
        batches = self.batches[state.epoch]
        self.signals.defer()
        votes = Votes(2)
        while state.step_in_epoch < len(batches):
            last = state.step_in_epoch + 1 == len(batches)
            due = config.is_checkpoint_step(state.step + 1) and not last
            read = (state.step + 1) % config.log_every == 0 or last or due
            self._step(batches[state.step_in_epoch], read)
            profiler.step()
            received, in_time = votes.cast(self.signals.received, self._is_checkpoint_time())
            if not last and (received or in_time or due):
                with self.clock.of("checkpoints on the way"):
                    self.save()
                self._stop_after(received)
                votes.close()  # it was before the checkpoint; who has received a signal says so again
        received, _ = votes.close()
        self.save()  # before the evaluation, in which nothing is lost then
        self._stop_after(received)
        self.logger.flush()
        self.signals.end_at_once()

    def _is_checkpoint_time(self) -> bool:
        """Return whether a checkpoint is due by the first rank's clock."""
        since = time.monotonic() - self._saved_at
        return dist.get_rank() == 0 and self.recipe.train.is_checkpoint_time(since)

    def _stop_after(self, number: int) -> None:
        """End the run at the checkpoint that has just been written, if any rank received a signal."""
        if number:
            sentence = (
                f"{signal.Signals(number).name}: the run ends after step {self.state.step}, with a "
                f"checkpoint; {RESUMING} it"
            )
            self._log_time()
            self.logger.warning(sentence)
            raise Stopped(sentence, exit_code(number))

    def _step(self, indices: list[int], read: bool) -> None:
        """Take and log one step; with ``read`` also read the pending losses."""
        state = self.state
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        self.clock.start_step()
        skipped, scale = self.engine.skipped_steps, self.loss_scale
        loss = self.train_step(indices, state.step)
        if self.engine.skipped_steps > skipped:
            self.logger.warning(
                f"step {state.step + 1} is skipped, and the schedule waits: its gradients are not finite; "
                f"the loss scale goes from {scale:,.0f} to {self.loss_scale:,.0f}"
            )
        elif state.step_in_epoch == 0:
            assert_full_precision_states(self.engine, self.optimizer, self.recipe.optimizer)
        state.step += 1
        state.step_in_epoch += 1
        report_step(state.step)
        self.log.add(state.step, state.epoch, loss, rate, getattr(self.optimizer, "num_skipped", 0))
        mean = self.log.flush() if read else None
        self.clock.stop_step(int(self.lengths[indices].sum()))
        if mean is not None:
            self._log_speed()
        self.logger.progress(state.step, state.epoch, mean, self.clock.tokens_per_second)

    def _log_speed(self) -> None:
        speed = {"tokens_per_second": self.clock.lap(), "memory_gb": memory_in_use() / 1e9}
        self.logger.metrics("speed", self.state.step, self.state.epoch, speed)

    def _log_time(self) -> None:
        """Record where the time went; a finished run that is resumed takes no step, and stays as it is."""
        if self.clock.times("steps"):
            self.logger.metrics("time", self.state.step, self.state.epoch, self.clock.record())

    @property
    def loss_scale(self) -> float:
        """Return what the loss is multiplied by, against gradients too small for fp16."""
        return float(getattr(self.engine.optimizer, "loss_scale", 1.0))

    def train_step(self, indices: list[int], step: int) -> Tensor:
        """Take one optimizer step on this rank's micro-batches; return its part of the mean loss, ().

        Args:
            indices: of the batch's sequences, over all ranks.
            step: counted from 0 over the run: dropout and masking follow it.
        """
        rank, ranks = dist.get_rank(), dist.get_world_size()
        accumulation = self.accumulation
        split = micro_batches(indices, self.lengths, ranks * accumulation)
        # DeepSpeed divides by ranks and micro-batches; the loss is divided by all their labels already.
        divisor = (self.total_weight(indices, str(step)) or 1.0) / (ranks * accumulation)
        total = torch.zeros((), device=device())
        skipped = self.engine.skipped_steps
        for micro_step in range(accumulation):
            index = rank * accumulation + micro_step
            with self.clock.of("data"):
                batch = self.micro_batch(split[index], f"{step}/{index}")
            self.clock.count_batch(batch.input_ids.numel(), int(self.lengths[split[index]].sum()))
            loss = self.engine(lambda model, batch=batch: self.recipe.objective.loss(model, batch, divisor))
            backward(self.engine, loss)
            if micro_step == accumulation - 1:
                self.recipe.adaptation.before_optimizer_step(self.model.model, step)
            self.engine.step()
            total += loss.detach()
        if self.engine.skipped_steps == skipped:
            self.recipe.adaptation.after_optimizer_step(self.model.model, step - skipped)
        return total / (ranks * accumulation)

    def _end_epoch(self, on_epoch: OnEpoch) -> bool:
        """Evaluate, and tell the checkpoint how good it is; return whether the run goes on, or is through."""
        state = self.state
        metrics = self.evaluate("dev", report_as=f"step-{state.step:06d}")["dev"]
        self.logger.metrics("evaluation", state.step, state.epoch + 1, metrics, "dev")
        self.logger.info(f"epoch {state.epoch + 1:2}  dev   {format_metrics(metrics)}")
        score = metrics[self.metric] * (1 if self.task.greater_is_better else -1)
        state.end_epoch(score, self.recipe.train.early_stopping)
        if not on_epoch(state.epoch, metrics) and self._has_steps(state):
            return False
        self.folder.checkpoints.amend(state)
        return True

    def save(self) -> None:
        """Write a checkpoint, unless there is one of this step. Collective."""
        if self._saved_step != self.state.step:
            if self.log.flush() is not None:
                self._log_speed()
            with self.clock.of("checkpoint"):
                self._assert_finite_weights()
                adaptation = self.recipe.adaptation.state_dict(self.model.model)
                self.folder.checkpoints.save(self.engine, self.state, adaptation)
        self._saved_step, self._saved_at = self.state.step, time.monotonic()

    def _load(self, checkpoint: Path) -> tuple[State, list[str]]:
        state, adaptation, messages = self.folder.checkpoints.load(self.engine, checkpoint, self.vector_sizes)
        self.recipe.adaptation.load_state_dict(self.model.model, adaptation)
        return state, messages

    def _assert_finite_weights(self) -> None:
        """Raise if any weight is not finite, before evaluating or saving. Collective."""
        tensors = [tensor for _, tensor in flat_parameters(self.engine, self.optimizer)]
        finite = torch.stack([tensor.detach().isfinite().all() for tensor in tensors]).all().float()
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        if not finite:
            raise Diverged(
                f"optimizer.lr: the weights are not finite after step {self.state.step}, expected finite "
                "numbers; start a new run with a smaller learning rate; earlier checkpoints are whole"
            )

    def _finish(self) -> Result:
        """Evaluate and export the best checkpoint."""
        state, folder, logger = self.state, self.folder, self.logger
        logger.stop_progress()
        if state.best_step != state.step:
            self._load_best()
        after = {**self.evaluate("dev", "test", report_as=BEST_REPORT), **self.evaluate_data_sets()}
        for split, metrics in after.items():
            logger.metrics("evaluation", state.step, state.epoch, metrics, split + BEST)
        self.export(folder.model, state.before, after)
        if self._latest is not None:
            split, report = self._latest
            for table in report.tables(split):
                logger.table(table)
        logger.table(metrics_table(self.floor, state.before, after, self.task.metric_unit))
        judged = self.metric, self.task.greater_is_better, self.recipe.model.is_scratch
        if sentence := below_the_floor(self.floor, after, *judged):
            logger.warning(sentence)
        for sentence in forgetting(
            state.before, after, self.metric, self.task.greater_is_better, self.task.metric_unit
        ):
            logger.result(sentence)
        self._log_time()
        peak = largest_peak_memory()
        for sentence in closing_words(self, peak):
            logger.info(sentence)
        speed = self.clock.tokens_per_second
        logger.result(
            f"{state.step:,} {'step' if state.step == 1 else 'steps'}, best at {state.best_step:,}, "
            f"{f'{speed:,.0f} tokens/s, ' if speed else ''}peak memory {peak / 1e9:.2f} GB"
        )
        run_report.end(self, speed, peak)
        logger.result(f"run folder: {folder.path}")
        return self._result(after)

    def _result(self, after: dict[str, Metrics]) -> Result:
        state, speed = self.state, self.clock.tokens_per_second
        return Result(self.folder.path, state.before, after, state.step, speed)

    def _load_best(self) -> None:
        """Load the best checkpoint; if it is gone or damaged, the last weights stay."""
        checkpoints, step = self.folder.checkpoints, self.state.best_step
        messages: list[str] = []
        problem = "no epoch since was evaluated"
        if step is not None:
            problem = checkpoints.problem(checkpoints.path(step), messages) or ""
        if problem or step is None:
            messages.append(f"the best checkpoint is lost, and the last is exported in its place: {problem}")
        else:
            self._load(checkpoints.path(step))
        for message in messages:
            self.logger.warning(message)
