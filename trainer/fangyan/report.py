"""What people see of a run: progress bar, log, metrics.jsonl, TensorBoard, the closing table."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

Scores = dict[str, float]


class Reporter:
    """Writes a run's record. On ranks other than 0 it does nothing.

    Args:
        folder: the run folder.
        active: whether this is rank 0.
        resume_step: records past this step are dropped: the run will write them anew.
    """

    def __init__(self, folder: Path, active: bool, resume_step: int | None = None):
        self.active = active
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._metrics = folder / "metrics.jsonl"
        self._log = folder / "log.txt"
        self._keep_until(resume_step)
        purge = None if resume_step is None else resume_step + 1
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)
        self.console = Console(highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )

    def _keep_until(self, step: int | None) -> None:
        if step is None or not self._metrics.exists():
            self._metrics.write_text("")
            return
        lines = []
        for line in self._metrics.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # cut short by a kill: its step will be run again
                break
            if record["step"] <= step:
                lines.append(line + "\n")
        self._metrics.write_text("".join(lines))

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.active:
            self._progress.stop()
            self._board.close()

    def say(self, text: str) -> None:
        """A line on the terminal and in log.txt."""
        if self.active:
            self.console.print(text, markup=False, soft_wrap=True)
            with self._log.open("a") as file:
                file.write(text + "\n")

    def record(self, kind: str, step: int, epoch: int, values: dict[str, float], part: str = "") -> None:
        """A line of metrics.jsonl, and the same in TensorBoard."""
        if not self.active:
            return
        head: dict[str, Any] = {"kind": kind, "step": step, "epoch": epoch}
        if part:
            head["part"] = part
        with self._metrics.open("a") as file:
            file.write(json.dumps(head | values) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{part or kind}/{name}", value, step)

    def start(self, done: int, total: int) -> None:
        """Shows the progress bar."""
        if self.active:
            self._task = self._progress.add_task("training", total=total, completed=done, status="")
            self._progress.start()

    def advance(self, step: int, epoch: int, loss: float | None, tokens_per_second: float) -> None:
        """Moves the bar; with a loss, which is not read every step, also renews its text."""
        if not self.active:
            return
        self._progress.update(self._task, completed=step, description=f"epoch {epoch + 1}")
        if loss is not None:
            memory = memory_in_use() / 1e9
            status = f"loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s  {memory:.2f} GB"
            self._progress.update(self._task, status=status)

    def stop(self) -> None:
        """Takes the progress bar down."""
        if self.active:
            self._progress.stop()

    def show(self, table: Table) -> None:
        """A table, on the terminal and in log.txt."""
        if not self.active:
            return
        self.console.print(table)
        with self._log.open("a") as file:
            Console(file=file, width=100).print(table)


def score_table(before: dict[str, Scores], after: dict[str, Scores], unit: str) -> Table:
    table = Table(title=f"Before and after ({unit})" if unit else "Before and after")
    table.add_column("score")
    for part in after:
        for column in (f"{part} before", f"{part} after"):
            table.add_column(column, justify="right")
    for name in next(iter(after.values())):
        cells = [f"{scores[part].get(name, 0.0):.2f}" for part in after for scores in (before, after)]
        table.add_row(name.replace("_", " "), *cells)
    return table


def memory_in_use() -> int:
    """Bytes: allocated on a GPU, resident on the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    resident: int = psutil.Process().memory_info().rss
    return resident
