"""One POST request to an address that may hold secrets, within a deadline that no receiver can extend."""

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
    """The receiver did not take the delivery. The message holds no secret."""


def masked(url: str) -> str:
    """The part of an address that may be logged: `https://host:port/…`."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/…"


def host(url: str) -> tuple[str, int]:
    """The receiver's host and port."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def post(url: str, body: bytes, identity: str, timeout_s: float) -> None:
    """Send JSON. Credentials in the address become Basic authorisation, and redirects are not followed.

    Args:
        url: an http or https address.
        body: the JSON.
        identity: the value of the header `Idempotency-Key`.
        timeout_s: the deadline for the whole exchange, also if the receiver sends one byte a second.

    Raises:
        DeliveryFailed: there was no answer in time, or its status is not 2xx.
    """
    sockets, ended = list[socket.socket](), Future[None]()

    def attempt() -> None:
        try:
            exchange(url, body, identity, timeout_s, sockets)
        except BaseException as error:
            ended.set_exception(error)
        else:
            ended.set_result(None)
        finally:
            for opened in sockets:
                opened.close()

    threading.Thread(target=attempt, name="webhook", daemon=True).start()
    try:
        ended.result(timeout_s)
    except TimeoutError:
        for opened in sockets:  # this ends the thread, even during a TLS handshake
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
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


def exchange(url: str, body: bytes, identity: str, timeout_s: float, sockets: list[socket.socket]) -> None:
    """Do what `post` does, but with a timeout for each step alone.

    Args:
        url, body, identity: as for `post`.
        timeout_s: how long connecting, the handshake, and each read and write may take.
        sockets: gets a duplicate of each socket that is opened, for the caller to shut down and close.

    Raises:
        DeliveryFailed: as for `post`.
    """
    opener = urllib.request.build_opener(_NoRedirects, _Http(sockets), _Https(sockets))
    try:
        with opener.open(_request(url, body, identity), timeout=timeout_s):
            pass
    except urllib.error.HTTPError as error:
        error.close()
        raise DeliveryFailed(f"answered {error.code}") from None
    except urllib.error.URLError as error:
        # A TimeoutError without errno is our own deadline; with one, the kernel gave up connecting.
        late = isinstance(error.reason, TimeoutError) and error.reason.errno is None
        found = f"no answer within {timeout_s:g} s" if late else f"no connection ({error.reason})"
        raise DeliveryFailed(found) from None
    except TimeoutError:
        raise DeliveryFailed(f"no answer within {timeout_s:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise DeliveryFailed(f"broken connection ({type(error).__name__})") from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, which would turn the POST into a GET or carry the payload to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _Closable(http.client.HTTPConnection):
    """Adds a duplicate of its socket to `sockets`, through which another thread can shut it down."""

    sockets: list[socket.socket]

    def connect(self) -> None:
        super().connect()
        self.sockets.append(self.sock.dup())


class _Secure(http.client.HTTPSConnection, _Closable):
    """The base classes are in this order because the TLS handshake comes after `_Closable.connect`."""


def _made(kind: type[_Closable], sockets: list[socket.socket], *given: Any, **more: Any) -> _Closable:
    connection = kind(*given, **more)
    connection.sockets = sockets
    return connection


class _Http(urllib.request.HTTPHandler):
    def __init__(self, sockets: list[socket.socket]) -> None:
        super().__init__()
        self._make = partial(_made, _Closable, sockets)

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(self._make, request)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, sockets: list[socket.socket]) -> None:
        super().__init__()
        self._make = partial(_made, _Secure, sockets)

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(self._make, request)
