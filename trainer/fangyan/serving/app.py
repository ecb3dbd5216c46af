"""The HTTP interface of a model: requests in JSON, answers and mistakes in JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

import fangyan
from fangyan.config import short
from fangyan.errors import UserError
from fangyan.serving.batching import Batcher, Busy
from fangyan.serving.body_limit import BodyLimit

# For the model's thread to end once all requests have their answers.
_LAST_SECONDS = 1.0
# Bytes of a character in JSON at most, "\ud83d\ude00", and of what is around texts.
_CHARACTER, _AROUND = 12, 10_000


@dataclass(frozen=True)
class Limits:
    """What a request may have at most.

    Attributes:
        texts: of it.
        characters: of all its texts together.
        new_tokens: sub-words that a model writes for all of them, which says how long a request may take.
    """

    texts: int = 256
    characters: int = 20_000
    new_tokens: int = 1024

    @property
    def body(self) -> int:
        """Return the bytes of a body that keeps within the others, however its JSON is written."""
        return _CHARACTER * self.characters + 8 * self.texts + _AROUND


class PredictRequest(BaseModel):
    """Texts, and for models that write, how much and how."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    texts: list[str] = Field(
        min_length=1,
        description="A sentence each; of a pair, a question and its context, both with a tab between.",
        examples=[["你食咗飯未呀", "我食咗飯喇"]],
    )
    max_new_tokens: int | None = Field(None, description="Most sub-words that a model writes.")
    temperature: float | None = Field(
        None, description="Of a model that writes: 0 takes the most likely sub-word each time."
    )

    def options(self) -> dict[str, Any]:
        """Return the options that are given."""
        return self.model_dump(exclude={"texts"}, exclude_none=True)


class PredictResponse(BaseModel):
    """What is predicted for each text, in order: the records of ``fangyan predict --json``."""

    predictions: list[dict[str, Any]]


class Health(BaseModel):
    """Whether the service answers, what it serves, and how many texts wait."""

    status: str
    task: str
    waiting: int


class Mistake(BaseModel):
    """What is wrong with a request, in a sentence."""

    error: str


_ERRORS: dict[int | str, dict[str, Any]] = {
    413: {"model": Mistake, "description": "More than the service takes at once."},
    422: {"model": Mistake, "description": "Not what the service, or its model, takes."},
    503: {"model": Mistake, "description": "Too many texts wait already, or the service ends."},
}


def make_app(batcher: Batcher, name: str, task: str, limits: Limits, new_tokens: int = 0) -> FastAPI:
    """Return the service of a model.

    Args:
        batcher: runs it.
        name: of the model, for the page that describes the service.
        task: that it learned.
        limits: of a request.
        new_tokens: sub-words that the model writes after a text where a request does not say; 0 of one that
            writes nothing.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        # Whoever waited has an answer by now. What the model still does is for nobody, and may take minutes.
        await asyncio.to_thread(batcher.close, _LAST_SECONDS)

    app = FastAPIOffline(
        redoc_url=None,
        title=name,
        description=f"A model of the task {task}, served by fangyan.",
        version=fangyan.__version__,
        lifespan=lifespan,
    )
    sentence = f"the body is larger than {limits.body:,} bytes, which no request within the limits needs"
    app.add_middleware(BodyLimit, most=limits.body, sentence=sentence)
    _answer_mistakes(app)

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/docs")

    @app.get("/health", responses={503: {"model": Health}})
    async def health() -> JSONResponse:
        """Return whether texts are answered."""
        found = Health(
            status="ok" if batcher.is_alive else "ended", task=task, waiting=batcher.waiting
        ).model_dump()
        return JSONResponse(found, 200 if batcher.is_alive else 503)

    @app.post("/predict", response_model=PredictResponse, responses=_ERRORS)
    async def predict(request: PredictRequest) -> JSONResponse:
        """Return what is predicted for each text."""
        _check(request, limits, new_tokens)
        answer = asyncio.wrap_future(batcher.submit(request.texts, request.options()))
        try:
            return JSONResponse({"predictions": await answer})
        except asyncio.CancelledError:  # the server ends, and waits no longer
            return JSONResponse({"error": "the service ended before the model had answered"}, 503)

    return app


def _check(request: PredictRequest, limits: Limits, new_tokens: int) -> None:
    """Refuse a request beyond the limits.

    Raises:
        HTTPException: with a sentence.
    """
    count, characters = len(request.texts), sum(map(len, request.texts))
    if count > limits.texts:
        raise HTTPException(413, f"texts: {count:,}, expected {limits.texts:,} at most")
    if characters > limits.characters:
        raise HTTPException(
            413, f"texts: {characters:,} characters together, expected {limits.characters:,} at most"
        )
    for i, text in enumerate(request.texts):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise HTTPException(422, f"texts.{i}: half a surrogate pair, expected Unicode text") from None
    each = new_tokens and (request.max_new_tokens or new_tokens)
    if count * each > limits.new_tokens:
        raise HTTPException(
            413,
            f"max_new_tokens: {each:,} after each of {count:,} texts, expected {limits.new_tokens:,} "
            "together at most",
        )


def _answer_mistakes(app: FastAPI) -> None:
    """Answer whatever is wrong with a request by one sentence in JSON."""

    def answer(status: int, sentence: str, headers: Any = None) -> JSONResponse:
        return JSONResponse({"error": sentence}, status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return answer(422, _sentence(error.errors()[0]))

    @app.exception_handler(UserError)
    async def mistaken(_: Request, error: UserError) -> JSONResponse:
        return answer(422, str(error))

    @app.exception_handler(Busy)
    async def busy(_: Request, __: Busy) -> JSONResponse:
        return answer(503, "too many texts wait already; try again in a second", {"Retry-After": "1"})

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # FastAPI's, of a body that is no UTF-8 or nests too deep
            return answer(422, f"the body is no JSON in UTF-8 ({str(error.__cause__)[:80]})")
        return answer(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return answer(500, f"the model failed ({type(error).__name__}); the service's log says more")


def _sentence(error: Any) -> str:
    """Return what pydantic found wrong, as one sentence: field, what was expected, what was found."""
    field = ".".join(str(part)[:80] for part in error["loc"][1:])
    message = error["msg"][0].lower() + error["msg"][1:]
    if error["type"] == "json_invalid":
        return f"the body is no JSON ({error.get('ctx', {}).get('error', message)})"
    if isinstance(error.get("input"), bytes):
        return "the body is not said to be JSON; expected the header Content-Type: application/json"
    if error["type"] == "missing":
        return f'{field or "the body"}: missing; expected JSON such as {{"texts": ["…"]}}'
    return f"{field or 'the body'}: {message}, found {short(error.get('input'))}"
