"""One POST to an address that may hold secrets, within a deadline whatever the other side does."""

from __future__ import annotations

import base64
import http.client
import socket
import threading
import urllib.error
import urllib.request
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from backfire import __version__
from backfire.errors import BackfireError


class DeliveryFailed(BackfireError):
    """The other side did not take it; the message holds no secret."""


def masked(url: str) -> str:
    """What may be logged of an address: `https://host:port/…`."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/…"


def host(url: str) -> tuple[str, int]:
    """The receiver's host and port."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def post(url: str, body: bytes, identity: str, timeout_s: float) -> None:
    """POST JSON; credentials in the address go as Basic authorisation; redirections are not followed.

    Args:
        url: http or https.
        body: JSON.
        identity: sent as `Idempotency-Key`.
        timeout_s: for all of it; a receiver that sends a byte a second is not waited for.

    Raises:
        DeliveryFailed: no answer in time, or one that is not 2xx.
    """
    request, lines, ended = _request(url, body, identity), list[socket.socket](), Future[None]()

    def attempt() -> None:
        try:
            _send(request, timeout_s, lines)
        except BaseException as error:
            ended.set_exception(error)
        else:
            ended.set_result(None)
        finally:
            for line in lines:
                line.close()

    threading.Thread(target=attempt, name="webhook", daemon=True).start()
    try:
        ended.result(timeout_s)
    except TimeoutError:
        for line in lines:  # which ends the thread, be it in the midst of a TLS handshake
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        raise DeliveryFailed(f"no answer within {timeout_s:g} s") from None


def _request(url: str, body: bytes, identity: str) -> urllib.request.Request:
    parts = urlsplit(url)
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"backfire/{__version__}",
        "Idempotency-Key": identity,
    }
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    return urllib.request.Request(bare, body, headers, method="POST")


def _send(request: urllib.request.Request, timeout_s: float, lines: list[socket.socket]) -> None:
    opener = urllib.request.build_opener(_Stay, _Http(lines), _Https(lines))
    try:
        with opener.open(request, timeout=timeout_s):
            pass
    except urllib.error.HTTPError as error:
        error.close()
        raise DeliveryFailed(f"answered {error.code}") from None
    except urllib.error.URLError as error:
        # Of connecting, or of a TLS handshake; where the kernel gave up, it has a number.
        late = isinstance(error.reason, TimeoutError) and error.reason.errno is None
        found = f"no answer within {timeout_s:g} s" if late else f"no connection ({error.reason})"
        raise DeliveryFailed(found) from None
    except TimeoutError:
        raise DeliveryFailed(f"no answer within {timeout_s:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise DeliveryFailed(f"broken connection ({type(error).__name__})") from None


class _Stay(urllib.request.HTTPRedirectHandler):
    """A redirection would turn the POST into a GET, or carry the payload to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _Cuttable(http.client.HTTPConnection):
    """Hands out a second descriptor of its connection, by which another thread can cut it."""

    lines: list[socket.socket]

    def connect(self) -> None:
        super().connect()
        self.lines.append(self.sock.dup())


class _Secure(http.client.HTTPSConnection, _Cuttable):
    """In this order: the TLS handshake comes after `_Cuttable.connect`."""


def _made(kind: type[_Cuttable], lines: list[socket.socket], *given: Any, **more: Any) -> _Cuttable:
    connection = kind(*given, **more)
    connection.lines = lines
    return connection


class _Http(urllib.request.HTTPHandler):
    def __init__(self, lines: list[socket.socket]) -> None:
        super().__init__()
        self._make = partial(_made, _Cuttable, lines)

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(self._make, request)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, lines: list[socket.socket]) -> None:
        super().__init__()
        self._make = partial(_made, _Secure, lines)

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(self._make, request)
