"""The process of a service: a socket, a model, and an end in which nobody who waits is left alone."""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from fangyan.errors import Stopped, UserError
from fangyan.inference.load import load, model_folder
from fangyan.models.files import read_config
from fangyan.serving.app import Limits, make_app
from fangyan.serving.batching import Batcher
from fangyan.tasks.causal_lm.predictor import NEW_TOKENS, TextGenerator
from fangyan.terminal import warn

# Seconds that requests have to be answered once the service is told to end.
PATIENCE = 60


def serve(run: Path, host: str, port: int, source: str | None, most_texts: int, limits: Limits) -> None:
    """Serve a run's model until a signal ends it; requests in flight are answered.

    Args:
        run: a run folder, or an exported model.
        host: address to listen on.
        port: of it; 0 takes one that is free.
        source: name of the data set that texts are of; see :func:`fangyan.inference.load.load`.
        most_texts: that are run together.
        limits: of a request.

    Raises:
        UserError: if there is no model, or the address cannot be listened on.
        Stopped: at Ctrl-C, with its exit code.
    """
    with listening(host, port) as listener:
        predictor = load(run, source)
        new_tokens = NEW_TOKENS if isinstance(predictor, TextGenerator) else 0
        batcher = Batcher(predictor, most_texts)
        task = str(read_config(model_folder(run)).fangyan["task"])
        app = make_app(batcher, run.resolve().name, task, limits, new_tokens)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=PATIENCE,
            server_header=False,
        )
        # From here on clients can connect. Another process may have bound the port too, and listened first.
        with _address(host, port):
            listener.listen(config.backlog)
        _say_where(run, listener, host)
        with _signals() as received:
            uvicorn.Server(config).run(sockets=[listener])
    if signal.SIGINT in received:
        raise Stopped("stopped by Ctrl-C", 130)


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a socket that is bound: before a model is loaded, an address that is taken is an error.

    Raises:
        UserError: if it cannot be listened on.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With its protocol, or asyncio leaves Nagle's algorithm on: half an answer waits 40 ms for the other.
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:  # the latter of names that no domain can have
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host}: no address of this machine ({reason})") from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with _address(host, port):
            listener.bind(address)
        yield listener


@contextmanager
def _address(host: str, port: int) -> Iterator[None]:
    """Say which address the system does not let the block have.

    Raises:
        UserError: in place of the system's error.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: cannot be listened on ({error.strerror}); expected an address "
            "of this machine, and a port that is free"
        ) from None


def _say_where(run: Path, listener: socket.socket, host: str) -> None:
    name = f"[{host}]" if ":" in host else host
    address = f"http://{name}:{listener.getsockname()[1]}"
    warn(f"{run} at {address}, described at {address}/docs")  # a result, beside the log of requests
    if not ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback:
        warn(
            f"--host {host}: everyone who reaches this machine there may use the model; there is no "
            "password, so put a proxy with one before it"
        )


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Yield the signals that ended the server, which raises them again once it has ended."""
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda got, _: received.append(got))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
