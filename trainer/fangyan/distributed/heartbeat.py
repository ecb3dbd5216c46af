"""Ranks that say every second that they are there, so that one that is lost is named and ends the run.

A collective waits for a rank that is stopped or out of reach for as long as its time-out, without a word.
Rank 0 listens on a port of its own; every other rank keeps a connection to it, tells at which step it is, and
hears of the others.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import socket
import socketserver
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist

from fangyan.errors import RESUMING, RankLost

# Seconds between two signs of life.
_PERIOD = 1.0
# Seconds without one after which a rank is lost. A pause is no failure: a node that swaps may need one.
SILENT = 40.0
# Seconds in which the main thread may fail with a cause of its own once a rank is lost.
_GRACE = 5.0
_ADVICE = f"; the run ends; {RESUMING} from the last checkpoint"
# Bytes of a report.
_LONGEST = 1 << 16
# What a collective says of a rank that is gone.
_OF_PEERS = ("gloo", "connection reset", "connection closed", "broken pipe", "socket", "nccl")


@dataclass
class Peer:
    """What is known of a rank.

    Attributes:
        host: its node's name.
        step: optimizer steps done when it was last heard.
        seen: when that was, in monotonic seconds.
        ended: why it ended, in one sentence; "" if it did not say; None while it runs.
        exit_code: that it ends with.
    """

    host: str = "an unknown node"
    step: int = 0
    seen: float = field(default_factory=time.monotonic)
    ended: str | None = None
    exit_code: int = 1

    def update(self, status: dict[str, Any]) -> None:
        """Take what the rank tells of itself."""
        self.host, self.step = status["host"], status["step"]
        self.ended, self.exit_code = status["ended"], status["exit_code"]
        self.seen = time.monotonic()


@dataclass(frozen=True)
class Loss:
    """A rank that is lost.

    Attributes:
        rank: which, as rank 0 found out or as this rank did.
        sentence: what happened to it.
        exit_code: for the others.
    """

    rank: int
    sentence: str
    exit_code: int


class Heartbeat:
    """Watches the other ranks of a run from a thread; see :meth:`start`.

    Args:
        rank: this one.
        ranks: how many.
        silent: seconds without a sign of life after which a rank is lost.

    Attributes:
        step: optimizer steps done, set by the trainer.
    """

    def __init__(self, rank: int, ranks: int, silent: float = SILENT):
        self.rank, self.ranks, self.step = rank, ranks, 0
        self._silent = silent
        self._loss: Loss | None = None
        self._found = threading.Event()
        self._news = threading.Event()
        self._stopping = threading.Event()
        self._lets_live = False
        self._ended: str | None = None
        self._exit_code = 1
        self._peers = {other: Peer() for other in range(ranks) if other != rank}
        self._thread: threading.Thread | None = None
        self._server: _Server | None = None

    def start(self, store: Any, address: str) -> None:
        """Begin to watch. Collective.

        Args:
            store: of the process group; it tells the other ranks where rank 0 listens.
            address: of rank 0, which all ranks have reached.
        """
        if self.rank == 0:
            token = secrets.token_hex(16)
            self._server = _Server(self, token)
            threading.Thread(target=self._server.serve_forever, daemon=True).start()
            store.set("heartbeat", json.dumps([self._server.server_address[1], token]))
            self._thread = threading.Thread(target=self._watch, daemon=True)
        else:
            port, token = json.loads(store.get("heartbeat"))
            connection = socket.create_connection((address, port), timeout=self._silent)
            self._thread = threading.Thread(target=self._report, args=(connection, token), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End without a word: the run is over on every rank, which have met for the last time."""
        self._stopping.set()
        self._news.set()
        if self._thread is not None:
            self._thread.join(self._silent)
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def let_live(self) -> None:
        """End this process no longer where another is lost: it has an error of its own to deal with."""
        self._lets_live = True

    def announce(self, sentence: str, exit_code: int) -> None:
        """Tell the other ranks why this one ends, before it does."""
        self._ended, self._exit_code = sentence, exit_code
        self._news.set()
        # The others hear of rank 0 when they report next.
        time.sleep(1.5 * _PERIOD if self.rank == 0 else 0.25 * _PERIOD)

    def explain(self, error: BaseException) -> RankLost | None:
        """Return which lost rank is behind a collective's error, or None if the error is this rank's own."""
        kinds = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)
        text = str(error).lower()
        if not isinstance(error, kinds) and not any(part in text for part in _OF_PEERS):
            return None
        self._found.wait(self._silent + 2 * _PERIOD)
        if self._loss is None:
            return None
        return RankLost(self._loss.sentence, not self._speaks(self._loss.rank), self._loss.exit_code)

    def _speaks(self, lost: int) -> bool:
        """Return whether this rank tells the user: one per node does, the first that is there."""
        local = int(os.environ.get("LOCAL_RANK", "0"))
        first = self.rank - local
        return self.rank == (first + 1 if lost == first else first)

    # What happens in the thread.

    def _watch(self) -> None:
        """Look for silent ranks, on rank 0."""
        while self._loss is None and not self._stopping.wait(_PERIOD / 4):
            now = time.monotonic()
            for other, peer in self._peers.items():
                if peer.ended is not None or now - peer.seen > self._silent:
                    self._lose(other)
                    break

    def _lose(self, rank: int) -> None:
        """Take note that a rank is lost, and end this process if nothing else does."""
        peer = self._peers[rank]
        self._found_out(Loss(rank, self._sentence(rank, peer) + _ADVICE, peer.exit_code))

    def _found_out(self, loss: Loss) -> None:
        if self._stopping.is_set():
            return
        self._loss = loss
        self._found.set()
        if not self._stopping.wait(_GRACE) and not self._lets_live:
            if self._speaks(loss.rank):
                print(f"fangyan: {loss.sentence}", file=sys.stderr, flush=True)
            os._exit(loss.exit_code)

    def _sentence(self, rank: int, peer: Peer) -> str:
        who = f"rank {rank} on {peer.host}"
        if peer.ended:
            return f"{who} ended after step {peer.step}: {peer.ended}"
        if peer.ended == "":
            return (
                f"{who} ended after step {peer.step} without a word: it was killed, as by the system where "
                "memory is short"
            )
        return (
            f"{who} has not answered for {self._silent:.0f} s, last after step {peer.step}: its process is "
            "stopped, or the link to it is down"
        )

    def _report(self, connection: socket.socket, token: str) -> None:
        """Tell rank 0 of this one every period, and hear of it and the others."""
        peer = self._peers[0]
        with connection, connection.makefile("rw", encoding="utf-8", newline="\n") as stream:
            while not self._stopping.is_set():
                message = {"token": token, "rank": self.rank, **self._status()}
                try:
                    stream.write(json.dumps(message) + "\n")
                    stream.flush()
                    answer = json.loads(stream.readline())
                except TimeoutError:
                    return self._lose(0)
                except (OSError, ValueError):  # closed, perhaps in the middle of a line
                    peer.ended = ""
                    return self._lose(0)
                peer.update(answer)
                if answer["lost"] is not None:
                    return self._found_out(Loss(*answer["lost"]))
                if peer.ended is not None:
                    return self._lose(0)
                self._news.wait(_PERIOD)
                self._news.clear()

    def _status(self) -> dict[str, Any]:
        loss = self._loss
        return {
            "host": socket.gethostname(),
            "step": self.step,
            "ended": self._ended,
            "exit_code": self._exit_code,
            "lost": None if loss is None else [loss.rank, loss.sentence, loss.exit_code],
        }

    def receive(self, message: dict[str, Any]) -> dict[str, Any]:
        """Take what a rank reports, on rank 0; return what it is told."""
        self._peers[message["rank"]].update(message)
        return self._status()

    def close(self, rank: int) -> None:
        """Take note that a rank's connection is closed, on rank 0."""
        peer = self._peers[rank]
        if peer.ended is None and not self._stopping.is_set():
            peer.ended = ""


class _Server(socketserver.ThreadingTCPServer):
    """Listens to the other ranks, one thread each."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024  # ranks come at once

    def __init__(self, heartbeat: Heartbeat, token: str):
        super().__init__(("", 0), _Handler)
        self.heartbeat, self.token = heartbeat, token


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        """Answer a rank's reports until its connection closes; strangers are not answered."""
        rank = None
        try:
            while line := self.rfile.readline(_LONGEST):
                message = json.loads(line)
                if not hmac.compare_digest(str(message["token"]), self.server.token):
                    return
                rank = message["rank"]
                answer = self.server.heartbeat.receive(message)
                self.wfile.write(json.dumps(answer).encode() + b"\n")
        except (OSError, ValueError, KeyError, TypeError):
            pass
        if rank is not None:
            self.server.heartbeat.close(rank)
