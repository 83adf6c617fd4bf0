"""Who may do what: hosts, the token and its cookie, forms of this page alone, and the headers of every
answer.

Whoever reaches the page may read names, states and published pictures. Originals are shown, and anything is
changed, only to a browser that has the token, which `backfire page --token` prints and which only the user of
the daemon can read.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backfire.files import durable

COOKIE = "backfire"
COOKIE_S = 30 * 24 * 3600
TOKEN_FILE = "page-token"
TOKEN_LEAST = 16
"""The fewest characters of a token; a shorter one was written by half, and is replaced."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "img-src 'self'",
        "style-src 'self'",
        "script-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
"""Nothing from elsewhere, nothing inline, and no page may hold this one in a frame."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # without a referrer, forms would be sent with the origin `null`
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def token(state: Path, *, new: bool = False) -> str:
    """The token of the page, made at its first use; it lies in the state folder, readable by its owner alone.

    Args:
        state: the state folder.
        new: whether to make another one, after which no browser that has the former one is let in.

    Raises:
        OSError: the file cannot be read or written.
    """
    file = state / TOKEN_FILE
    if new or (file.exists() and not _read(file)):
        file.unlink(missing_ok=True)
    if not file.exists():
        # Complete before it has its name: the page and the command may both make it at the same time.
        part = state / f"{TOKEN_FILE}.{os.getpid()}"
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as opened:
            durable.write(opened, [secrets.token_urlsafe(24).encode()])
        with suppress(FileExistsError):
            os.link(part, file)
        part.unlink()
        durable.sync(state)
    return _read(file)


def _read(file: Path) -> str:
    """The token in a file; empty where it is none."""
    found = file.read_text(encoding="utf-8", errors="replace").strip()
    return found if len(found) >= TOKEN_LEAST else ""


class Guard:
    """Knows the token, and what it lets through.

    The cookie holds a number that was drawn for this browser, with the time when that was, and its signature
    by the token; so nothing is kept here, a session ends after `COOKIE_S` whatever the browser does, and a
    new token ends all sessions at once. Without a token nobody is let in.

    Args:
        state: the state folder, in which the token lies.
        now: wall clock, Unix seconds.
    """

    def __init__(self, state: Path, now: Callable[[], float] = time.time) -> None:
        self._file, self._now = state / TOKEN_FILE, now

    @property
    def _token(self) -> bytes:
        """The token as it is now, since the command may make another one at any time."""
        try:
            return _read(self._file).encode()
        except OSError:
            return b""

    def session(self, request: Request) -> str:
        """The number of the browser's session; empty where it has none."""
        number, _, signature = request.cookies.get(COOKIE, "").partition(".")
        if not self._is_signed("session", number, signature):
            return ""
        since = number.partition("-")[0]
        return number if since.isdecimal() and self._now() - int(since) < COOKIE_S else ""

    def form_key(self, session: str) -> str:
        """What a form of this session must carry."""
        return _signed(self._token, "form", session)

    def seal(self, session: str, told: str) -> str:
        """The signature of what this page tells a session in an address, which anybody may write."""
        return _signed(self._token, "told", f"{session}:{told}")

    def is_sealed(self, session: str, told: str, seal: str) -> bool:
        """Whether this page told the session that."""
        return bool(session) and self._is_signed("told", f"{session}:{told}", seal)

    def knows(self, offered: str) -> bool:
        """Whether this is the token."""
        token = self._token
        return bool(token) and _same(token.decode(), offered.strip())

    def let_in(self, response: Response, *, secure: bool) -> None:
        """Give the browser a session."""
        number = f"{int(self._now())}-{secrets.token_urlsafe(12)}"
        cookie = f"{number}.{_signed(self._token, 'session', number)}"
        response.set_cookie(
            COOKIE, cookie, max_age=COOKIE_S, httponly=True, samesite="strict", secure=secure, path="/"
        )

    def may_post(self, request: Request, offered: str) -> bool:
        """Whether a form was sent by a page of this server to a browser that has a session."""
        session = self.session(request)
        return bool(session) and is_own(request) and self._is_signed("form", session, offered)

    def _is_signed(self, what: str, text: str, signature: str) -> bool:
        token = self._token
        return bool(token) and _same(_signed(token, what, text), signature)


def _signed(token: bytes, what: str, text: str) -> str:
    return hmac.new(token, f"{what}:{text}".encode(), hashlib.sha256).hexdigest()


def _same(expected: str, offered: str) -> bool:
    return hmac.compare_digest(expected.encode(), offered.encode("utf-8", "replace"))


def is_own(request: Request) -> bool:
    """Whether the browser says that a page of this very server sent the request, or is too old to say."""
    origin = request.headers.get("origin")
    # Without their ports, since proxies commonly pass on the name alone.
    if origin is not None and urlsplit(origin).hostname != request.url.hostname:
        return False
    return request.headers.get("sec-fetch-site", "same-origin") == "same-origin"


class Headers:
    """Adds `HEADERS` to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, with_headers)
