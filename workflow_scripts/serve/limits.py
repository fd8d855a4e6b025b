"""Bounds of what one request and all of them together may ask for, and who may ask at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Iterable
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_BYTES = 2_000_000
TEXT_CHARACTERS = 20_000
QUERIES = 100
TOP = 100
# Examples in one answer: queries x signs x top.
EXAMPLES = 2_000
# A longer text of an example is cut in an answer.
SHOWN_CHARACTERS = 20_000
# Requests that are answered or wait at once; more are told to come again.
ACTIVE = 64
CONNECTIONS = 256
HEAD_SECONDS, BODY_SECONDS, REQUEST_SECONDS = 10.0, 10.0, 60.0

LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class _RefusedError(Exception):
    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class _GoneError(Exception):
    """The client has gone before its request was here."""


class Guard:
    """ASGI middleware: what is too large, too slow, too much at once or from elsewhere doesn't reach the application.

    A name of the Host header that isn't this server's is refused, because a page elsewhere may have its own name point
    here; so is an Origin that isn't, because no page elsewhere has anything to ask. The port may be a tunnel's.
    A request whose client has gone is cancelled.

    Parameters
    ----------
    app: the application; it is handed whole bodies.
    names: host names under which the server is reached.
    body_seconds: time in which a request's body must have arrived.
    active: most requests at once.
    """

    def __init__(self, app: ASGIApp, names: Collection[str], body_seconds: float = BODY_SECONDS, active: int = ACTIVE):
        self._app, self._names, self._body_seconds, self._most = app, set(names), body_seconds, active
        self._active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        send = _with_headers(send)
        if self._active >= self._most:
            await _refuse(send, 429, "The server is busy; ask again in a moment.", [(b"retry-after", b"1")])
            return
        self._active += 1
        try:
            self._check_names(scope["headers"])
            body = await self._body(scope["headers"], receive)
        except _RefusedError as refusal:
            await _refuse(send, refusal.status, str(refusal), [(b"connection", b"close")])
        except _GoneError:
            pass
        else:
            await self._while_there(scope, body, receive, send)
        finally:
            self._active -= 1

    async def _while_there(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Let the application answer, as long as the client is there."""
        gone = asyncio.ensure_future(_gone(receive))
        answered = asyncio.ensure_future(self._app(scope, _replay(body, gone), send))
        try:
            await asyncio.wait({gone, answered}, return_when=asyncio.FIRST_COMPLETED)
            if answered.done():
                answered.result()
        finally:
            for task in (gone, answered):
                task.cancel()
            await asyncio.gather(gone, answered, return_exceptions=True)

    def _check_names(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        if len(hosts) != 1 or _host_name("//" + hosts[0]) not in self._names:
            raise _RefusedError(400, "This server doesn't go by the name in the Host header (--name adds one).")
        for name, value in headers:
            if name == b"origin" and _host_name(value.decode("latin-1")) not in self._names:
                raise _RefusedError(403, "Pages of other sites may not ask.")

    async def _body(self, headers: Iterable[tuple[bytes, bytes]], receive: Receive) -> bytes:
        too_large = _RefusedError(413, f"A request may have {BODY_BYTES:,} bytes.")
        if any(name == b"content-length" and int(value) > BODY_BYTES for name, value in headers):
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _GoneError
                    body += message.get("body", b"")
                    if len(body) > BODY_BYTES:
                        raise too_large
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise _RefusedError(408, f"The request did not arrive within {self._body_seconds:g} s.") from None


def _host_name(address: str) -> str | None:
    """Return the host of an address in lower case; None if it isn't a plain one."""
    try:
        parts = urlsplit(address)
        return parts.hostname if parts.port is None or parts.port >= 0 else None
    except ValueError:
        return None


async def _gone(receive: Receive) -> Message:
    """Return the message that the client has gone, when it comes."""
    while (message := await receive())["type"] != "http.disconnect":
        pass
    return message


def _replay(body: bytes, gone: asyncio.Future[Message]) -> Receive:
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await asyncio.shield(gone)

    return replay


def _with_headers(send: Send) -> Send:
    added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await send(message)

    return send_with_headers


async def _refuse(send: Send, status: int, message: str, headers: list[tuple[bytes, bytes]]) -> None:
    body = json.dumps({"detail": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
