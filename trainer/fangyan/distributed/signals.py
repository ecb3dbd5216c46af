"""Signals that end a run once it has written a checkpoint, and a launcher's end that does the same."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from functools import cache
from types import FrameType, TracebackType
from typing import Any

import psutil
import torch
import torch.distributed as dist

from fangyan.distributed.process_group import announce_end, control_group
from fangyan.errors import RESUMING
from fangyan.terminal import say_now

# SIGTERM and SIGHUP come from schedulers and closed terminals, SIGINT from Ctrl-C.
_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
# Seconds after which another Ctrl-C is meant, and not the same passed on by a launcher.
_AGAIN = 1.0
# prctl(2).
_PR_SET_PDEATHSIG = 1


def exit_code(number: int) -> int:
    """Return a run's exit code after a checkpoint: 0 for a scheduler's signal, and 130 as ever for Ctrl-C."""
    return 128 + number if number == signal.SIGINT else 0


class StopSignals:
    """Takes note of signals, or ends the process where there is nothing to lose. Used as a context.

    Outside of Python's main thread, where signals cannot be taken, it does nothing.

    Attributes:
        received: the first signal since :meth:`defer`, or 0.
    """

    def __init__(self) -> None:
        self.received = 0
        self._at = 0.0
        # Whether all steps are in a checkpoint; None while there are some that are not.
        self._saved: bool | None = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        """Take the signals from whoever had them."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves SIGHUP
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def defer(self) -> None:
        """From here on only take note: there are steps to be saved."""
        self._saved = None

    def end_at_once(self) -> None:
        """From here on end the process on a signal: all steps are in a checkpoint."""
        self._saved = True
        if self.received:
            self._end(self.received)

    def _receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        now = time.monotonic()
        if self._saved is not None:
            self._end(number)
        elif not self.received:
            self.received, self._at = number, now
            say_now(f"{signal.Signals(number).name}: the run ends after this step, with a checkpoint")
        elif number == signal.SIGINT and now - self._at > _AGAIN:
            self._end(number)

    def _end(self, number: int) -> None:
        name = signal.Signals(number).name
        code = 128 + number
        if self._saved is None:  # the second Ctrl-C
            sentence = f"{name} again: the run ends at once; {RESUMING} its last checkpoint"
        elif self._saved:
            sentence, code = f"{name}: the run ends; {RESUMING} it", exit_code(number)
        else:
            sentence = f"{name}: the run ends; nothing has been trained since its start"
        say_now(sentence)
        announce_end(f"it received {name}", code)
        os._exit(code)


class Votes:
    """Asks all ranks questions at every step, and has the answers at the next: nobody waits for them.

    Args:
        questions: how many.
    """

    def __init__(self, questions: int):
        self._pending: tuple[torch.Tensor, Any] | None = None
        self._none = [0] * questions

    def cast(self, *answers: int) -> list[int]:
        """Return the largest answer to each question of the step before, and ask this step's. Collective."""
        if dist.get_world_size() == 1:
            return list(answers)
        decided = self.close()
        ballot = torch.tensor(answers, dtype=torch.int32)
        work = dist.all_reduce(ballot, dist.ReduceOp.MAX, group=control_group(), async_op=True)
        self._pending = ballot, work
        return decided

    def close(self) -> list[int]:
        """Return the largest answers of the vote that is under way, if any. Collective."""
        if self._pending is None:
            return self._none
        ballot, work = self._pending
        self._pending = None
        work.wait()
        return [int(answer) for answer in ballot.tolist()]


@cache
def end_with_launcher() -> None:
    """Send this process SIGTERM where the launcher that started it ends: nobody would look after it.

    DeepSpeed's consists of a process per node, which is the parent of the ranks, and the one that the user
    started. Other launchers are left alone: they end their processes themselves. Done once per process.
    """
    if "RANK" not in os.environ:
        return
    watched = _launchers()
    if watched:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        threading.Thread(target=_watch, args=(watched,), daemon=True).start()


def _launchers() -> list[psutil.Process]:
    """Return the processes of DeepSpeed's launcher on this node, and the ssh session that started it."""
    found: list[psutil.Process] = []
    for process in psutil.Process().parents():
        try:
            arguments, name = process.cmdline(), process.name()
        except psutil.Error:
            break
        if any("deepspeed" in argument for argument in arguments[:4]):
            found.append(process)
        elif found and name.startswith("sshd"):
            return [*found, process]
        elif not found or len(found) > 1 or name not in ("sh", "bash", "dash", "zsh"):
            break
    return found


def _watch(processes: list[psutil.Process]) -> None:
    while all(map(_runs, processes)):
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it has ended between the two
        return False
