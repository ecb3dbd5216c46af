"""The log of a run: terminal, log.txt, metrics.jsonl, and whoever listens."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from rich.table import Table
from torch import Tensor

from fangyan.device import memory_in_use
from fangyan.errors import Diverged
from fangyan.files import sync, whole_file, writing
from fangyan.inference.model_card import metrics_rows
from fangyan.inference.run_records import BEST
from fangyan.progress import Bar
from fangyan.tasks.task import Metrics
from fangyan.terminal import Terminal, print_results, say_line, warn_line
from fangyan.trackers.callback import Listeners
from fangyan.training.state import State


class Logger:
    """Writes a run's record. On ranks other than 0 it does nothing.

    Args:
        folder: the run folder.
        active: whether this is rank 0.
        resume: where the run resumes: later records are dropped, since it will write them again.

    Attributes:
        listeners: are told what metrics.jsonl gets.
    """

    listeners: Listeners | None = None

    def __init__(self, folder: Path, active: bool, resume: State | None = None):
        self.active = active
        if not active:
            return
        self._metrics = folder / "metrics.jsonl"
        self._log = folder / "log.txt"
        self._bar: Bar | None = None
        self._keep_until(resume)

    def _keep_until(self, resume: State | None) -> None:
        """Keep the records of what has been done; a kill on the way leaves all of them."""
        kept: list[str] = []
        if resume is not None and self._metrics.exists():
            lines = self._metrics.read_text(encoding="utf-8", errors="replace").splitlines()
            places = [_is_done(line, resume) for line in lines]
            kept = [line + "\n" for line, is_done in zip(lines, places, strict=True) if is_done]
            damaged = places[:-1].count(None)  # the last may be cut short by a kill
            if damaged:
                self.warning(
                    f"{self._metrics}: {damaged} damaged line{'s are' if damaged > 1 else ' is'} dropped"
                )
        elif resume is not None:
            self.warning(f"{self._metrics} is missing: the records up to step {resume.step} are lost")
        with whole_file(self._metrics) as partial:
            partial.write_text("".join(kept), encoding="utf-8")

    def __enter__(self) -> Logger:
        """Return the logger."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the progress bar."""
        self.stop_progress()

    def info(self, text: str) -> None:
        """Say on standard error what the run does, unless it is quiet; log.txt has it in any case."""
        self._line(say_line, text)

    def warning(self, text: str) -> None:
        """Say on standard error and in log.txt of what a user should know."""
        self._line(warn_line, text)

    def result(self, text: str) -> None:
        """Write a line to standard output and log.txt."""
        self._line(print_results, text)

    def _line(self, write: Callable[[str], None], text: str) -> None:
        if self.active:
            write(text)
            with writing(self._log), self._log.open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    def metrics(self, kind: str, step: int, epoch: int, values: Mapping[str, float], split: str = "") -> None:
        """Write a line of metrics.jsonl, and tell whoever listens."""
        if not self.active:
            return
        head: dict[str, Any] = {"kind": kind, "step": step, "epoch": epoch}
        if split:
            head["split"] = split
        with writing(self._metrics), self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(head | dict(values)) + "\n")
        if self.listeners is not None:
            self.listeners.metrics(kind, split, step, epoch, values)

    def table(self, table: Table) -> None:
        """Write a table to standard output and log.txt."""
        if not self.active:
            return
        print_results(table)
        with writing(self._log), self._log.open("a", encoding="utf-8") as file:
            Terminal(file=file, width=100).print(table)

    def flush(self) -> None:
        """Wait until the records are on the disk, as the checkpoint of their last step is."""
        if self.active:
            with writing(self._metrics):
                sync(self._metrics)

    def start_progress(self, done: int, total: int) -> None:
        """Show the progress bar."""
        if self.active:
            self._bar = Bar("training", total, done)

    def progress(self, step: int, epoch: int, loss: float | None, tokens_per_second: float) -> None:
        """Advance the bar; with a loss, which is not read every step, also renew its text."""
        if not self.active or self._bar is None:
            return
        self._bar.what = f"epoch {epoch + 1}"
        if loss is not None:
            memory = memory_in_use() / 1e9
            self._bar.status = f"loss {loss:.3f}, {tokens_per_second:,.0f} tokens/s, {memory:.2f} GB"
        self._bar.advance(step - self._bar.done)

    def stop_progress(self) -> None:
        """Remove the progress bar."""
        if self.active and self._bar is not None:
            self._bar.close()
            self._bar = None


def _is_done(line: str, resume: State) -> bool | None:
    """Return whether a record is of what a run has done that resumes; None if it is damaged."""
    try:
        record = json.loads(line)
        step, epoch, split = int(record["step"]), int(record["epoch"]), str(record.get("split", ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if record["kind"] == "evaluation" and (epoch > resume.epoch or split.endswith(BEST)):
        return False
    return step <= resume.step


class StepLog:
    """Losses since the last read: reading one stalls a GPU, so they are read every few steps."""

    def __init__(self, logger: Logger):
        self._logger = logger
        self._pending: list[tuple[int, int, Tensor, float, int]] = []

    def add(self, step: int, epoch: int, loss: Tensor, learning_rate: float, num_skipped: int) -> None:
        """Keep a step; ``num_skipped`` elements of this rank had no finite gradient and were not stepped."""
        self._pending.append((step, epoch, loss, learning_rate, num_skipped))

    def flush(self) -> float | None:
        """Record the pending steps and return their mean loss, or None if there is none. Collective.

        Raises:
            Diverged: if a loss is not finite.
        """
        if not self._pending:
            return None
        losses = torch.stack([loss.float() for _, _, loss, _, _ in self._pending])
        skipped = losses.new_tensor([num_skipped for *_, num_skipped in self._pending])
        both = torch.stack([losses, skipped])
        if dist.get_world_size() > 1:
            dist.all_reduce(both)
        values = both[0].tolist()
        for (step, epoch, _, rate, _), loss, count in zip(
            self._pending, values, both[1].tolist(), strict=True
        ):
            if count:
                self._logger.warning(
                    f"step {step}: elements skipped, whose gradient is not finite: {count:,.0f}"
                )
            if not math.isfinite(loss):
                raise Diverged(
                    f"optimizer.lr: the loss is {loss} at step {step} with a learning rate of {rate:.2g}, "
                    "expected a finite number; start a new run with a smaller one or a longer "
                    "schedule.warmup; earlier checkpoints are whole"
                )
            self._logger.metrics("train", step, epoch, {"loss": loss, "lr": rate})
        self._pending.clear()
        return float(sum(values) / len(values))


def metrics_table(
    floor: Mapping[str, Metrics], before: Mapping[str, Metrics], after: Mapping[str, Metrics], unit: str
) -> Table:
    """Return a table of metrics of a guess, and before and after training, per split."""
    table = Table(title=f"Before and after ({unit})" if unit else "Before and after")
    head, *rows = metrics_rows(floor, before, after)
    for i, column in enumerate(head):
        table.add_column(column, justify="right" if i else "left", no_wrap=not i)
    for row in rows:
        table.add_row(*row)
    return table


def format_metrics(metrics: Metrics) -> str:
    """Return metrics as one line."""
    return "  ".join(f"{name.replace('_', ' ')} {value:,.2f}" for name, value in metrics.items())
