"""The HTTP server: bounded connections, and an end that a signal brings about."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from workflow_scripts.serve.limits import CONNECTIONS, HEAD_SECONDS, REQUEST_SECONDS

STOP_SECONDS = 5


class BoundedProtocol(H11Protocol):
    """A connection that is closed if the head of a request, or a request and its answer, take too long."""

    head_seconds, request_seconds = HEAD_SECONDS, REQUEST_SECONDS
    connections_at_once = CONNECTIONS
    _timer: asyncio.TimerHandle | None = None
    # When the request and its answer have had their time, and how much of the answer wasn't sent when last looked.
    _until = 0.0
    _unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        if len(self.connections) > self.connections_at_once:
            transport.abort()
        self._close_after(self.head_seconds)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._start_request()

    def on_response_complete(self) -> None:
        before = self.cycle
        self._unsent = self.transport.get_write_buffer_size()
        # The next request of the same connection, of which something may be here already.
        self._close_after(self.head_seconds)
        super().on_response_complete()
        if self.cycle is not before:
            self._start_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._close_after(None)
        super().connection_lost(exc)

    def _start_request(self) -> None:
        self._until, self._unsent = self.loop.time() + self.request_seconds, 0
        self._close_after(self.request_seconds)

    def _close_after(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._close_unless_read)

    def _close_unless_read(self) -> None:
        # A complete answer may still be on its way to somebody who reads slowly.
        unsent, left = self.transport.get_write_buffer_size(), self._until - self.loop.time()
        if 0 < unsent < self._unsent and left > 0:
            self._unsent = unsent
            self._close_after(min(self.head_seconds, left))
        else:
            self.transport.abort()


class Server(uvicorn.Server):
    """A server that SIGINT and SIGTERM end without an error."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


def make_server(app: ASGIApp, host: str, port: int, kind: type[uvicorn.Server] = Server) -> uvicorn.Server:
    """Return a server of an application.

    Parameters
    ----------
    app: the application.
    host: address to listen on.
    port: port there; 0 for any that is free.
    kind: `Server`, or uvicorn's own where signals are somebody else's.
    """
    options: dict[str, Any] = {
        "http": BoundedProtocol,
        "ws": "none",
        "lifespan": "off",
        # Queries are nobody's affair.
        "access_log": False,
        "log_level": "error",
        "server_header": False,
        "date_header": False,
        "proxy_headers": False,
        "timeout_graceful_shutdown": STOP_SECONDS,
    }
    return kind(uvicorn.Config(app, host, port, **options))
