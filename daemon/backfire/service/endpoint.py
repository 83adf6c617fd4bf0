"""The HTTP endpoint of `serve.metrics`; the only module of the daemon that uses uvicorn and Starlette.

It is imported only where `serve.metrics` is set, because the two libraries add to the daemon's memory. The
server runs in a thread of its own, and every page is computed in another, so it answers while the loop is
busy and while one page hangs.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from backfire import __version__
from backfire.errors import ConfigError

log = structlog.get_logger()

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
"""`Host` headers that are always accepted. A web page whose name was pointed at this machine (DNS rebinding)
sends that name, and is refused."""

CONNECTION_S = 10.0
"""How long a connection may last. Each serves one request, so this bounds slow clients only."""

ANSWER_S = 8.0
"""How long a page may take to compute."""

CONNECTIONS_MAX = 64
"""Further clients are disconnected at once, or they could use up the daemon's file descriptors."""

Answer = tuple[int, str, bytes]
"""Status, content type, body."""


class Endpoint:
    """A small HTTP server that answers GET and HEAD of the given pages.

    Args:
        address: host and port; port 0 takes a free one.
        pages: path → what computes its answer; called in a thread of its own.
        allowed_hosts: accepted `Host` headers besides those of loopback; `*.example.org` covers subdomains.
        connection_s: how long a connection may last.
        answer_s: how long a page may take to compute; less, or the client would never learn why it failed.

    Raises:
        ConfigError: the address cannot be bound.
    """

    def __init__(
        self,
        address: tuple[str, int],
        pages: Mapping[str, Callable[[], Answer]],
        allowed_hosts: Sequence[str] = (),
        *,
        connection_s: float = CONNECTION_S,
        answer_s: float = ANSWER_S,
    ) -> None:
        host, port = address
        shown = f"[{host}]" if ":" in host else host
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server(address, family=family)
        except OSError as error:
            # systemd's RestrictAddressFamilies= answers this where metrics.conf is not installed.
            denied = error.errno == errno.EAFNOSUPPORT
            remedy = "install the unit's drop-in metrics.conf" if denied else "name another port"
            message = (
                f"serve.metrics {shown}:{port}: cannot be bound ({os.strerror(error.errno or 0)}); {remedy}"
            )
            raise ConfigError(message) from error
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(
            uvicorn.Config(
                _application(pages, (*LOOPBACK_HOSTS, shown, *allowed_hosts), answer_s),
                http=type("Connection", (_Connection,), {"seconds": connection_s}),
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                log_level="critical",  # malformed requests are not worth a line; _Page logs failures
                access_log=False,
                proxy_headers=False,
                server_header=False,
                headers=[("Server", f"backfire/{__version__}"), ("Connection", "close")],
                timeout_graceful_shutdown=1,
            )
        )
        self._thread: threading.Thread | None = None

    @property
    def clients(self) -> int:
        """How many clients are connected."""
        return len(self._server.server_state.connections)

    def start(self) -> None:
        """Answer until closed."""
        # A daemon thread: one that hangs must not keep the process from ending.
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop answering. Does nothing more than to free the address if the endpoint was not started."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(5)
        self._socket.close()


class _Connection(H11Protocol):
    """One client: disconnected when it takes too long, or at once when there are too many of them."""

    seconds = CONNECTION_S
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS_MAX:
            transport.abort()
        else:
            self._deadline = self.loop.call_later(self.seconds, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._deadline is not None:
            self._deadline.cancel()


def _application(
    pages: Mapping[str, Callable[[], Answer]], hosts: Sequence[str], answer_s: float
) -> Starlette:
    async def unknown(*_: Any) -> Response:
        return PlainTextResponse(f"try {', '.join(pages)}\n", 404)

    application = Starlette(
        routes=[Route(path, _Page(path, compute, answer_s).respond) for path, compute in pages.items()],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
        exception_handlers={404: unknown},
    )
    application.router.redirect_slashes = False
    return application


class _Page:
    """Computes one page in a daemon thread, at most once at a time.

    Requests that arrive meanwhile get the same answer, so a page that hangs (say, on a network folder that is
    gone) costs one thread and not one for each request.
    """

    def __init__(self, path: str, compute: Callable[[], Answer], answer_s: float) -> None:
        self._path, self._compute, self._answer_s = path, compute, answer_s
        self._pending: asyncio.Future[Answer] | None = None

    async def respond(self, request: Request) -> Response:
        if self._pending is None or self._pending.done():
            self._pending = asyncio.get_running_loop().create_future()
            threading.Thread(target=self._run, args=(self._pending,), name="page", daemon=True).start()
        try:
            status, kind, body = await asyncio.wait_for(asyncio.shield(self._pending), self._answer_s)
        except TimeoutError:
            return PlainTextResponse(f"{self._path}: not computed within {self._answer_s:g} s\n", 503)
        return Response(body, status, {"Content-Type": kind})

    def _run(self, pending: asyncio.Future[Answer]) -> None:
        try:
            answer = self._compute()
        except Exception:
            log.exception("internal_error", page=self._path)
            answer = 500, "text/plain; charset=utf-8", b"internal error; the log has it\n"
        with suppress(RuntimeError):  # the endpoint was closed meanwhile
            pending.get_loop().call_soon_threadsafe(pending.set_result, answer)
