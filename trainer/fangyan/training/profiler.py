"""``fangyan train --profile``: where a step's time and memory go."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.table import Table
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, schedule

from fangyan.files import whole_file
from fangyan.training.logger import Logger

# The first steps allocate and compile; five more are enough.
SKIPPED, WARM_UP, PROFILED = 3, 1, 5
NEEDED = SKIPPED + WARM_UP + PROFILED
COSTLIEST = 10
OURS = "fangyan::"


class StepProfile:
    """Profiles some of a run's first steps, which changes nothing else of it.

    Args:
        path: of the Chrome trace to write; None profiles nothing, as on ranks other than 0.
        logger: for the table of what was found.
    """

    def __init__(self, path: Path | None, logger: Logger):
        self._path, self._logger = path, logger
        self._profiler: Any = None
        self._steps = 0

    def __enter__(self) -> StepProfile:
        """Start PyTorch's profiler."""
        if self._path is not None:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profiler = profile(
                activities=activities,
                schedule=schedule(wait=SKIPPED, warmup=WARM_UP, active=PROFILED, repeat=1),
                on_trace_ready=self._show,
                profile_memory=True,
            )
            self._profiler.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it; say so where the run was too short."""
        if self._profiler is not None:
            self._profiler.__exit__(kind, error, trace)
            if error is None and self._steps < NEEDED:
                self._logger.warning(f"--profile: {self._steps} steps, expected {NEEDED}; no trace")

    def step(self) -> None:
        """Count a step; called after every one."""
        if self._profiler is not None:
            self._steps += 1
            self._profiler.step()

    def _show(self, profiler: Any) -> None:
        assert self._path is not None
        if self._steps < NEEDED:  # the run has ended before
            return
        with whole_file(self._path) as partial:
            profiler.export_chrome_trace(str(partial))
        self._logger.table(costliest(profiler.key_averages()))
        self._logger.result(f"trace of {PROFILED} steps, for chrome://tracing or Perfetto: {self._path}")


def costliest(averages: Any) -> Table:
    """Return a table of the operators that took most time themselves, and of our kernels together."""
    # A kernel is a row of its own and counted in the operator that launched it: operators alone, here.
    parts = [
        part
        for part in averages
        if part.device_type == DeviceType.CPU and not part.key.startswith("ProfilerStep")
    ]
    on_gpu = any(part.self_device_time_total for part in parts)
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    whole = "device_time_total" if on_gpu else "cpu_time_total"
    memory = "self_device_memory_usage" if on_gpu else "self_cpu_memory_usage"
    total = sum(getattr(part, own) for part in parts) or 1.0
    table = Table(title=f"The {COSTLIEST} costliest parts of a step", title_justify="left")
    table.add_column("part", overflow="fold")
    for column in ("ms", "share", "calls", "MB allocated"):
        table.add_column(column, justify="right")
    for part in sorted(parts, key=lambda part: -getattr(part, own))[:COSTLIEST]:
        table.add_row(
            part.key,
            f"{getattr(part, own) / 1e3 / PROFILED:.2f}",
            f"{getattr(part, own) / total:.1%}",
            f"{part.count / PROFILED:.0f}",
            f"{max(getattr(part, memory), 0) / 1e6 / PROFILED:.1f}",
        )
    ours = sum(getattr(part, whole) for part in parts if part.key.startswith(OURS))
    table.add_section()
    table.add_row("fangyan's kernels", f"{ours / 1e3 / PROFILED:.2f}", f"{ours / total:.1%}", "", "")
    return table
