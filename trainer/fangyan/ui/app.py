"""The page: what it answers to a browser."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from starlette.exceptions import HTTPException

from fangyan.errors import UserError
from fangyan.serving.body_limit import BodyLimit
from fangyan.ui.checks import Checks
from fangyan.ui.files import MOST_UPLOADED, in_words
from fangyan.ui.guard import Guard
from fangyan.ui.jobs import Jobs
from fangyan.ui.pages import add_pages
from fangyan.ui.run_pages import add_run_pages
from fangyan.ui.runs import Paces
from fangyan.ui.state import State
from fangyan.ui.trial import Trial

_HERE = Path(__file__).parent
# Bytes around an uploaded file in its request.
_AROUND = 100_000


def make_app(token: str, port: int) -> FastAPI:
    """Return the page of the current folder.

    Args:
        token: without which nothing is answered.
        port: that it is served on.
    """
    state = State(_templates(), Jobs(), Checks(), Trial(), Paces())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        state.checks.close()
        state.trial.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(
        BodyLimit,
        most=MOST_UPLOADED + _AROUND,
        sentence=f"the file is larger than {in_words(MOST_UPLOADED)}, expected a smaller one: put larger "
        f"files into the folder {Path.cwd()} itself",
    )
    app.add_middleware(Guard, token=token, port=port)  # added last, it comes first
    app.mount("/static", StaticFiles(directory=_HERE / "static"))
    add_pages(app, state)
    add_run_pages(app, state)
    _answer_mistakes(app, state)
    return app


def _templates() -> Jinja2Templates:
    templates = Jinja2Templates(_HERE / "templates")
    templates.env.trim_blocks = templates.env.lstrip_blocks = True
    templates.env.globals["folder"] = str(Path.cwd())
    return templates


def _answer_mistakes(app: FastAPI, state: State) -> None:
    """Answer whatever is wrong with a request by one sentence: a page to a browser, JSON to a script."""

    def answer(request: Request, status: int, sentence: str) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return state.page(request, "error.html", status, sentence=sentence)
        return JSONResponse({"error": sentence}, status)

    @app.exception_handler(UserError)
    async def mistaken(request: Request, error: UserError) -> Response:
        return answer(request, 422, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first: Any = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:])[:80]
        return answer(request, 422, f"{field}: {first['msg'][0].lower()}{first['msg'][1:]}")

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        sentence = "there is no such page" if error.status_code == 404 else str(error.detail)
        return answer(request, error.status_code, sentence)

    @app.exception_handler(OSError)
    async def of_the_system(request: Request, error: OSError) -> Response:
        return answer(request, 500, f"{error.filename or 'the disk'}: {error.strerror or error}")

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return answer(request, 500, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
