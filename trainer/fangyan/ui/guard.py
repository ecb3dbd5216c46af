"""Who may use the page: the browser that was given its address, and no other site's requests."""

from __future__ import annotations

import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Everything comes from the server itself. `same-origin`: a page without a referrer sends no Origin either.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_NO_TOKEN = (
    "This page opens by the whole address that `fangyan ui` has printed, which ends in a token. If the "
    "command was started again, its new address opens the page; runs have gone on meanwhile."
)


class Guard:
    """Lets requests through that carry the server's token, and are not made by another site.

    The token comes once in the address, and is kept as a cookie. `Host` is checked against names that a
    domain of others was given for this machine (DNS rebinding), `Origin` against forms of other sites.

    Args:
        app: the page.
        token: of the server.
        port: that it listens on.
    """

    def __init__(self, app: ASGIApp, token: str, port: int):
        self._app = app
        self._token = token
        self._cookie = f"fangyan-{port}"  # a browser sends cookies to every port of a host
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it; see ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        assert scope["type"] == "http"  # uvicorn refuses web sockets where the app has no route for them
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        """Return what to answer in place of the page, or None."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if host not in self._hosts:
            return _refused(f"Host is {host[:80]!r}, expected {' or '.join(sorted(self._hosts))}")
        if origin is not None and origin != f"http://{host}":
            return _refused(
                f"Origin is {origin[:80]!r}, expected http://{host}: another site made this request"
            )
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and self._is_token(given):
            answer = RedirectResponse("/", 303, {"Cache-Control": "no-store"})
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="lax")
            return answer
        return None if self._is_token(self._kept(headers)) else _refused(_NO_TOKEN)

    def _kept(self, headers: Headers) -> str:
        cookies = SimpleCookie()
        try:
            cookies.load(headers.get("cookie", ""))
        except CookieError:
            return ""
        found = cookies.get(self._cookie)
        return "" if found is None else found.value

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self._token.encode())


def _refused(sentence: str) -> Response:
    return PlainTextResponse(f"fangyan: {sentence}\n", 403)
