"""Commands that answer a browser or a program: serve, ui."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fangyan.cli.options import RunArgument, SourceOption


def serve(
    run: RunArgument,
    host: Annotated[
        str, typer.Option(help="Address to listen on: 0.0.0.0 lets in everyone who reaches this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes one that is free.")] = 8000,
    source: SourceOption = None,
    batch_texts: Annotated[
        int,
        typer.Option(min=1, max=4096, help="Texts of several requests that are run together; 1 for none."),
    ] = 64,
    max_texts: Annotated[int, typer.Option(min=1, max=4096, help="Of a request.")] = 256,
    max_characters: Annotated[
        int, typer.Option(min=1, max=10_000_000, help="Of all texts of a request.")
    ] = 20_000,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="That a model writes for all texts of a request.")
    ] = 1024,
) -> None:
    """Serve a run's model by HTTP: POST /predict with texts, GET /health, and /docs says more."""
    from fangyan.packages import require

    for package in ("fastapi", "uvicorn", "fastapi_offline"):
        require(package, "fangyan serve", "fastapi uvicorn fastapi-offline")
    from fangyan.serving.app import Limits
    from fangyan.serving.server import serve as run_service

    run_service(run, host, port, source, batch_texts, Limits(max_texts, max_characters, max_new_tokens))


def ui(
    folder: Annotated[
        Path, typer.Option(help="With your files; recipes and runs are written there.", show_default=False)
    ] = Path(),
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65_535,
            help="By default 8765, or one that is free if that is taken.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Serve a page on this computer for those who do not program: pick files, train, watch, try the model."""
    from fangyan.packages import require

    for package in ("fastapi", "jinja2", "python_multipart", "uvicorn"):
        require(package, "fangyan ui", "fastapi jinja2 python-multipart uvicorn")
    from fangyan.ui.server import serve_page

    serve_page(folder, port)
