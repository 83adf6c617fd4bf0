"""The HTTP endpoint over real sockets: which hosts it answers, and what no client can do to it."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from structlog.testing import capture_logs

from backfire.errors import ConfigError
from backfire.service.endpoint import CONNECTIONS_MAX, LOOPBACK_HOSTS, Answer, Endpoint
from tests.support.sandbox import wait_for


def hello() -> Answer:
    return 200, "text/plain", b"hello\n"


class Hanging:
    """A page that hangs until it is let go."""

    def __init__(self) -> None:
        self.go, self.calls = threading.Event(), 0

    def __call__(self) -> Answer:
        self.calls += 1
        self.go.wait(60)
        return 200, "text/plain", b"late\n"


def broken() -> Answer:
    raise ZeroDivisionError


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    page = Hanging()
    yield page
    page.go.set()


ALLOWED = ["metrics.example.org", "*.proxy.example"]


@pytest.fixture
def endpoint(hanging: Hanging) -> Iterator[Endpoint]:
    pages: dict[str, Callable[[], Answer]] = {"/hello": hello, "/hanging": hanging, "/broken": broken}
    found = Endpoint(("127.0.0.1", 0), pages, ALLOWED, connection_s=5.0, answer_s=0.5)
    found.start()
    yield found
    found.close()


def connect(endpoint: Endpoint) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(endpoint.url.rpartition(":")[2])), timeout=20)


def ask(endpoint: Endpoint, *lines: str) -> tuple[int, str]:
    """The status and everything that comes until the server ends the connection."""
    with connect(endpoint) as client:
        client.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode())
        return answered(client)


def answered(client: socket.socket) -> tuple[int, str]:
    text = b"".join(iter(lambda: client.recv(65536), b"")).decode()
    return int(text.split()[1]) if text else 0, text


def was_disconnected(client: socket.socket) -> bool:
    """Whether the server ends the connection without an answer; a timeout is an error."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def get(endpoint: Endpoint, page: str = "/hello", host: str = "localhost") -> tuple[int, str]:
    return ask(endpoint, f"GET {page} HTTP/1.1", f"Host: {host}")


@pytest.mark.parametrize(
    "host",
    [
        *LOOPBACK_HOSTS,
        "localhost:9477",
        "[::1]:9477",
        "LOCALHOST",
        "metrics.example.org",
        "a.proxy.example:80",
    ],
)
def test_this_machine_and_the_allowed_hosts_are_answered(endpoint: Endpoint, host: str) -> None:
    status, text = get(endpoint, host=host)
    assert (status, text.rpartition("\n\r\n")[2].endswith("hello\n")) == (200, True)


@pytest.mark.parametrize(
    "host",
    [
        "evil.com",
        "evil.com:9477",
        "127.0.0.1.evil.com",
        "localhost.evil.com",
        "evil.com#localhost",
        "",
        "proxy.example",
    ],
)
def test_a_strange_host_is_refused_on_every_page(endpoint: Endpoint, host: str) -> None:
    """A web page whose host name was made to resolve to this machine must not read these pages."""
    for page in ("/hello", "/elsewhere"):
        status, text = get(endpoint, page, host)
        assert (status, "hello" in text) == (400, False)


def test_a_host_in_the_request_line_does_not_stand_in_for_the_header(endpoint: Endpoint) -> None:
    assert ask(endpoint, "GET http://localhost/hello HTTP/1.1", "Host: evil.com")[0] == 400
    assert ask(endpoint, "GET /hello HTTP/1.1")[0] == 400, "none"
    assert ask(endpoint, "GET /hello HTTP/1.1", "Host: localhost", "Host: evil.com")[0] == 400, "two"
    assert ask(endpoint, "GET /hello HTTP/1.1", "Host: evil.com", "X-Forwarded-Host: localhost")[0] == 400


def test_the_server_names_itself_and_serves_one_request_per_connection(endpoint: Endpoint) -> None:
    status, text = ask(endpoint, "HEAD /hello HTTP/1.1", "Host: localhost", "Connection: keep-alive")
    assert (status, "hello" in text) == (200, False)
    assert "\nserver: backfire/" in text.lower()
    assert "\ncontent-length: 6\r" in text.lower()


def test_what_is_no_request_ends_the_connection(endpoint: Endpoint) -> None:
    assert ask(endpoint, "hello, server")[0] == 400
    assert get(endpoint)[0] == 200


def test_endless_headers_end_the_connection(endpoint: Endpoint) -> None:
    endless = b"GET /hello HTTP/1.1\r\nHost: localhost\r\n" + (b"X: " + b"x" * 65536 + b"\r\n") * 1000
    with connect(endpoint) as client, pytest.raises(ConnectionError):
        client.sendall(endless)
    assert get(endpoint)[0] == 200


def test_a_slow_client_is_disconnected_and_delays_nobody() -> None:
    endpoint = Endpoint(("127.0.0.1", 0), {"/hello": hello}, connection_s=1.0)
    endpoint.start()
    with connect(endpoint) as mute:
        mute.sendall(b"GET /hel")
        assert get(endpoint)[0] == 200
        began = time.monotonic()
        assert was_disconnected(mute)
        assert time.monotonic() - began < 10
    endpoint.close()


def test_clients_beyond_the_limit_are_turned_away_and_do_no_harm(endpoint: Endpoint) -> None:
    with ExitStack() as held:
        clients = [held.enter_context(connect(endpoint)) for _ in range(CONNECTIONS_MAX)]
        wait_for(lambda: endpoint.clients == CONNECTIONS_MAX, seconds=10)
        with connect(endpoint) as turned_away:
            assert was_disconnected(turned_away)
        for client in clients:
            client.close()
        wait_for(lambda: not endpoint.clients, seconds=10)
    assert get(endpoint)[0] == 200


def test_a_page_that_hangs_costs_one_thread_and_no_other_page(endpoint: Endpoint, hanging: Hanging) -> None:
    for _ in range(2):
        status, text = get(endpoint, "/hanging")
        assert (status, "not computed within 0.5 s" in text) == (503, True)
        assert get(endpoint)[0] == 200
    assert hanging.calls == 1
    hanging.go.set()
    wait_for(lambda: get(endpoint, "/hanging")[0] == 200, seconds=10)


def test_a_page_that_fails_is_logged(endpoint: Endpoint) -> None:
    with capture_logs() as lines:
        status, text = get(endpoint, "/broken")
    assert (status, "ZeroDivisionError" in text) == (500, False)
    assert [(line["event"], line["page"]) for line in lines] == [("internal_error", "/broken")]


def test_closing_does_not_wait_for_a_page_that_hangs(endpoint: Endpoint, hanging: Hanging) -> None:
    with connect(endpoint) as client:
        client.sendall(b"GET /hanging HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_for(lambda: hanging.calls == 1, seconds=10)
        began = time.monotonic()
        endpoint.close()
        assert time.monotonic() - began < 10
    with pytest.raises(ConnectionRefusedError):
        connect(endpoint)


def test_ipv6() -> None:
    try:
        found = Endpoint(("::1", 0), {"/hello": hello})
    except ConfigError:
        pytest.skip("no IPv6 here")
    found.start()
    with socket.create_connection(("::1", int(found.url.rpartition(":")[2])), timeout=20) as client:
        client.sendall(f"GET /hello HTTP/1.1\r\nHost: {found.url.removeprefix('http://')}\r\n\r\n".encode())
        assert answered(client)[0] == 200
    found.close()


def test_a_taken_address_is_a_configuration_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = (
            rf"serve\.metrics 127\.0\.0\.1:{port}: cannot be bound \(Address already in use\); name another"
        )
        with pytest.raises(ConfigError, match=message):
            Endpoint(("127.0.0.1", port), {"/hello": hello})


def test_where_the_unit_allows_no_network_the_drop_in_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def shut(*_: object, **__: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    monkeypatch.setattr(socket, "socket", shut)
    with pytest.raises(ConfigError, match=r"metrics\.conf"):
        Endpoint(("127.0.0.1", 0), {"/hello": hello})


def test_an_endpoint_that_was_not_started_frees_its_address() -> None:
    first = Endpoint(("127.0.0.1", 0), {"/hello": hello})
    first.close()
    second = Endpoint(("127.0.0.1", int(first.url.rpartition(":")[2])), {"/hello": hello})
    second.close()
