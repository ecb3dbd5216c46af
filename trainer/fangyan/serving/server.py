"""The process of a service: a model behind a socket."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

from fangyan.inference.load import load, model_folder
from fangyan.models.files import read_config
from fangyan.serving.app import Limits, make_app
from fangyan.serving.batching import Batcher
from fangyan.serving.listening import answer, listening
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
        answer(app, listener, host, port, PATIENCE, lambda: _say_where(run, listener, host))


def _say_where(run: Path, listener: socket.socket, host: str) -> None:
    name = f"[{host}]" if ":" in host else host
    address = f"http://{name}:{listener.getsockname()[1]}"
    warn(f"{run} at {address}, described at {address}/docs")  # a result, beside the log of requests
    if not ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback:
        warn(
            f"--host {host}: everyone who reaches this machine there may use the model; there is no "
            "password, so put a proxy with one before it"
        )
