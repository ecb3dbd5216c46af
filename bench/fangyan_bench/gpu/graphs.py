"""CUDA graphs of an implementation's calls, which leave the host out, and the kernels that take the time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from typing_extensions import override

from fangyan_bench.harness.timing import SAMPLE_SECONDS, Timed, Trial, clock

Calls = Callable[[], None]


class AsksTheHost(Exception):
    """A call waits for the GPU, so that no graph of it can be captured; no capture has been tried."""


class Replay(Timed):
    """A pass over all sets of inputs, captured once; has the methods of ``timing.Timed``.

    Where there is no GPU it makes the calls themselves, so that a rehearsal runs the same code.
    """

    def __init__(self, trial: Trial, pass_name: str, device: str):
        calls = trial.call_each(pass_name)
        self._replay: Calls = _capture(calls) if device == "cuda" else calls
        self._clock, self._sets, self._replays = clock(device), trial.sets, 1

    @override
    def calibrate(self, pass_name: str) -> float:
        self._run(1)
        seconds = max(self._run(1), 1e-9)
        self._replays = max(1, round(SAMPLE_SECONDS / seconds))
        return seconds * self._replays

    @override
    def sample(self, pass_name: str) -> float:
        """Return the seconds of one call."""
        return self._run(self._replays) / self._replays / self._sets

    def _run(self, replays: int) -> float:
        def some() -> None:
            for _ in range(replays):
                self._replay()

        taken = self._clock()
        taken.time(some)
        return taken.seconds()


def _capture(calls: Calls) -> Calls:
    """Capture the calls, warmed up on the stream of the capture (PyTorch, CUDA semantics, "CUDA Graphs").

    Raises:
        AsksTheHost: found out beforehand: a capture that fails leaves the allocator unable to free memory.
    """
    before = torch.cuda.current_stream()
    torch.cuda.set_sync_debug_mode("error")
    try:
        calls()
    except RuntimeError as error:
        raise AsksTheHost(str(error)) from error
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            calls()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            calls()
    finally:
        torch.cuda.set_stream(before)  # which a capture that fails does not
    torch.cuda.synchronize()
    replay: Calls = graph.replay
    return replay


def kernels(calls: Calls, count: int, device: str, most: int = 12) -> list[dict[str, Any]]:
    """Profile the kernels that a call's time goes to.

    Args:
        calls: makes ``count`` calls.
        count: how many.
        device: ``cuda``, or ``cpu`` for a rehearsal.
        most: how many kernels to return.

    Returns:
        Name, seconds and launches per call of each kernel, longest first.
    """
    from torch.profiler import ProfilerActivity, profile

    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as found:
        calls()
        if device == "cuda":
            torch.cuda.synchronize()
    time_of = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    rows = [
        {
            "name": event.key[:80],
            "seconds": getattr(event, time_of) / 1e6 / count,
            "launches": event.count / count,
        }
        for event in found.key_averages()
    ]
    return sorted((row for row in rows if row["seconds"] > 0), key=lambda row: -row["seconds"])[:most]
