"""The process that a user starts, and the ranks on nodes that end with it.

The ranks' standard input is a pipe from the front, by way of ssh. Nothing is ever written to it. It ends
with the front, however that ends, and with the connection; and where it ends, the ranks do.
"""

from __future__ import annotations

import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

from fangyan.terminal import say_now

# No password is asked for. A node that is switched off is found after a minute; nothing else would tell.
_OPTIONS = ("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=15", "ServerAliveCountMax=4")
SSH = ("ssh", "-T", "-x", *(f"-o{option}" for option in _OPTIONS))
# Seconds in which the others find out by themselves that a rank is lost, and say so.
_FIND_OUT = 60.0
# Seconds that ranks have for a last checkpoint. Who waits for a rank that is lost then ends without one.
_LAST_CHECKPOINT = 300.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Front:
    """Runs a command on nodes, and ends it where this process gets a signal. Used as a context.

    Attributes:
        received: the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._input: int | None = None
        self._ended = math.inf
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Front:
        """Take the signals."""
        for number in _SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves SIGHUP
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back, and end what runs."""
        self._end_input()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, commands: Mapping[str, str]) -> dict[str, int]:
        """Run a shell command on each node until all have ended, and return their exit codes.

        Where one fails the others end too, with a checkpoint if they can. ssh's own failures are 255, and a
        node whose ranks do not end is left with -9.
        """
        reading, self._input = os.pipe()
        self._ended = math.inf
        if self.received is not None:  # before there was something to end
            self._end_input()
        running = {
            # A session of its own: Ctrl-C is for this process, which lets the ranks end in order.
            host: subprocess.Popen([*SSH, host, command], stdin=reading, start_new_session=True)
            for host, command in commands.items()
        }
        os.close(reading)
        codes: dict[str, int] = {}
        failed = None
        while len(codes) < len(running):
            time.sleep(0.1)
            codes = {host: code for host, ssh in running.items() if (code := ssh.poll()) is not None}
            if failed is None and any(codes.values()):
                failed = time.monotonic()
            now = time.monotonic()
            if failed is not None and now - failed > _FIND_OUT:
                self._end_input()
            patience = _LAST_CHECKPOINT if failed is None else 0.0
            if now - self._ended > patience + _FIND_OUT:
                for ssh in running.values():
                    ssh.kill()  # of ranks that are stopped, or a node that answers no longer
        self._end_input()
        return codes

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            say_now("left; the ranks end by themselves")
            os._exit(128 + number)
        self.received = self.received or signal.Signals(number)
        self._end_input()
        say_now(f"{self.received.name}: the ranks end")

    def _end_input(self) -> None:
        if self._input is not None:
            descriptor, self._input = self._input, None
            os.close(descriptor)
            self._ended = time.monotonic()


def end_with_input() -> None:
    """Send this process SIGTERM where its standard input ends, as a rank's does with its :class:`Front`."""
    threading.Thread(target=_wait_for_end, daemon=True).start()


def _wait_for_end() -> None:
    # All ranks of a node have the same input. Nothing is read of it, and all of them see its end.
    poll = select.poll()
    poll.register(sys.stdin.fileno(), select.POLLIN | select.POLLHUP)
    poll.poll()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_LAST_CHECKPOINT)
    os._exit(128 + signal.SIGTERM)
