"""The process of the page: the folder, a port of this machine, and a token."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fangyan.errors import UserError
from fangyan.serving.listening import answer, listening
from fangyan.terminal import print_results, say_line
from fangyan.ui.app import make_app

HOST = "127.0.0.1"
# Where the page is unless another is asked for, or has it.
PORT = 8765
# Seconds that requests have once the process is told to end: runs go on without it.
_PATIENCE = 3


def serve_page(folder: Path, port: int | None) -> None:
    """Serve the page until a signal ends it; a run that it has started goes on.

    Args:
        folder: whose files it shows, and where recipes and runs are written.
        port: to listen on; None takes :data:`PORT`, or one that is free.

    Raises:
        UserError: if the folder cannot be used, or the port cannot be listened on.
        Stopped: at Ctrl-C, with its exit code.
    """
    if not folder.is_dir():
        raise UserError(f"--folder {folder}: no such folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--folder {folder}: cannot be written to, expected one for recipes and runs")
    os.chdir(folder)
    with _listening(port) as listener:
        own_port = listener.getsockname()[1]
        token = secrets.token_urlsafe(24)
        address = f"http://{HOST}:{own_port}/?token={token}"

        def announce() -> None:
            print_results(f"fangyan: the page for {Path.cwd()} is at\n\n    {address}\n")
            say_line("Open this address in a browser. Ctrl-C ends the page; a training that runs goes on.")

        answer(make_app(token, own_port), listener, HOST, own_port, _PATIENCE, announce)


@contextmanager
def _listening(port: int | None) -> Iterator[socket.socket]:
    """Yield a socket on a port; on any that is free where none is asked for and the usual one is taken."""
    if port is None:
        with socket.socket() as probe:
            port = PORT if probe.connect_ex((HOST, PORT)) else 0
    with listening(HOST, port) as listener:
        yield listener
