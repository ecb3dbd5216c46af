"""A limit on the bodies of requests."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """Refuses a body that says that it is too long, or turns out to be.

    Args:
        app: the service.
        most: bytes.
        sentence: what is then answered.
    """

    def __init__(self, app: ASGIApp, most: int, sentence: str):
        self._app = app
        self._most = most
        self._sentence = sentence

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it; see ASGI."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._most:
                raise HTTPException(413, self._sentence)
            return message

        length = Headers(scope=scope).get("content-length", "") if scope["type"] == "http" else ""
        if length.isdecimal() and int(length) > self._most:
            await JSONResponse({"error": self._sentence}, 413)(scope, receive, send)
        else:
            await self._app(scope, counted, send)
