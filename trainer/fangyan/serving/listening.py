"""The socket of a service, and an end in which nobody who waits is left alone."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from fangyan.errors import Stopped, UserError


def answer(
    app: Any, listener: socket.socket, host: str, port: int, patience: int, announce: Callable[[], None]
) -> None:
    """Answer requests until a signal ends the process; those in flight are answered.

    Args:
        app: an ASGI application.
        listener: of :func:`listening`.
        host: as the user gave it, for messages.
        port: as the user gave it.
        patience: seconds that requests have to be answered once the process is told to end.
        announce: called once clients can connect.

    Raises:
        UserError: if the address cannot be listened on.
        Stopped: at Ctrl-C, with its exit code.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=patience,
        server_header=False,
    )
    # From here on clients can connect. Another process may have bound the port too, and listened first.
    with _address(host, port):
        listener.listen(config.backlog)
    announce()
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
