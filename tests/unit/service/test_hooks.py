"""Deliveries to a real HTTP server and real commands; a fake wall clock drives the waiting."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from backfire import advice
from backfire.config import Settings, parse
from backfire.service.hooks.courier import LONGEST_S, Courier
from backfire.service.hooks.webhook import DeliveryFailed, exchange, masked, post
from backfire.types import Job, JobState, Verdict
from tests.support.sandbox import wait_for

JOB = Job(
    7, b"desk/caf\xe9.png", JobState.PUBLISHED, key="0123456789abcdef" * 4, output_path=b"desk/caf\xe9.png",
    output_sha256="b" * 64, input_sha256="a" * 64, verdict=Verdict.WEAK, updated=100.0,
)  # fmt: skip


class Receiver(HTTPServer):
    """Answers with the next status of `answers`, or 204 when none is left; keeps the requests."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.server_port}/hook"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, dict(self.headers.items()), body))
        status = self.server.answers.pop(0) if self.server.answers else 204
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", f"http://{self.server.url}/elsewhere")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def configured(tmp_path: Path, **section: Any) -> Settings:
    return parse({"folders": {"inbox": "inbox"}, "hooks": section}, base=tmp_path)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def waiting(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "state" / "hooks").glob("*"))


def test_a_webhook_gets_the_documented_payload(tmp_path: Path, receiver: Receiver) -> None:
    courier = Courier(configured(tmp_path, webhook=f"http://user:p%40ss@{receiver.url}?token=s3cret"))
    courier(JOB)
    assert len(waiting(tmp_path)) == 1, "written down before it is sent"
    assert courier.step() is None
    ((path, headers, payload),) = receiver.requests
    assert (said := advice.of(JOB)) is not None
    assert path == "/hook?token=s3cret"
    assert headers["Authorization"] == "Basic dXNlcjpwQHNz"
    assert headers["Idempotency-Key"] == payload["id"] == "0123456789abcdef-7-published"
    assert payload == {
        "id": "0123456789abcdef-7-published", "event": "published", "at": "1970-01-01T00:01:40Z", "job": 7,
        "file": "desk/caf\\xe9.png", "folder": str(tmp_path / "outbox"), "output": "desk/caf\\xe9.png",
        "verdict": "weak", "code": None, "attempts": 0,
        "message": str(said), "details": "", "page": said.page,
        "input_sha256": "a" * 64, "output_sha256": "b" * 64,
    }  # fmt: skip
    assert waiting(tmp_path) == []
    assert courier.delivered == 1


def test_failures_are_tried_again_later_and_given_up(tmp_path: Path, receiver: Receiver) -> None:
    clock = Clock()
    receiver.answers = [500, 302, 404]
    settings = configured(tmp_path, webhook=f"http://u:hidden@{receiver.url}?token=s3cret", attempts=3)
    courier = Courier(settings, now=clock)
    courier(replace(JOB, state=JobState.FAILED, code="empty", message="p.png: is empty"))
    with capture_logs() as lines:
        assert courier.step() == 5.0
        assert courier.step() == 5.0, "it is not sent before it is due"
        clock.now += 5
        assert courier.step() == 10.0
        clock.now += 10
        assert courier.step() is None
    assert [line["event"] for line in lines] == ["hook_failed", "hook_failed", "hook_given_up"]
    assert [line["error"] for line in lines] == ["answered 500", "answered 302", "answered 404"]
    assert len(receiver.requests) == 3, "a redirection is not followed"
    assert receiver.requests[0][2]["event"] == "failed"
    told = json.dumps(lines)
    assert lines[0]["to"] == f"http://127.0.0.1:{receiver.server_port}/…"
    assert not [secret for secret in ("hidden", "s3cret", "token", "/hook") if secret in told]
    assert (waiting(tmp_path), courier.given_up) == ([], 1)


def test_what_was_not_delivered_survives_a_restart(tmp_path: Path, receiver: Receiver) -> None:
    clock = Clock()
    receiver.answers = [503]
    settings = configured(tmp_path, webhook=f"http://{receiver.url}")
    first = Courier(settings, now=clock)
    first(JOB)
    first.step()
    clock.now += 60
    second = Courier(settings, now=clock)
    second.start()
    wait_for(lambda: second.delivered == 1, seconds=10)
    second.close()
    assert [request[2]["id"] for request in receiver.requests] == ["0123456789abcdef-7-published"] * 2
    assert waiting(tmp_path) == []


def test_only_the_chosen_events_are_delivered(tmp_path: Path) -> None:
    courier = Courier(configured(tmp_path, command=["true"], events=["failed"]))
    for state in JobState:
        courier(replace(JOB, state=state))
    assert courier.pending == 1, "a quarantined job's id is that of the failed one"


def test_a_command_gets_the_payload_and_no_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    script = (
        "import json, os, sys; json.dump([sys.argv[1], json.load(sys.stdin), 'NOTIFY_SOCKET' in os.environ],"
        " open('got', 'w'))"
    )
    monkeypatch.chdir(tmp_path)
    courier = Courier(configured(tmp_path, command=[sys.executable, "-c", script, "$(touch pwned); a b"]))
    courier(JOB)
    assert courier.step() is None
    argument, payload, notified = json.loads((tmp_path / "got").read_text())
    assert (argument, payload["job"], notified) == ("$(touch pwned); a b", 7, False)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["false"], "exit status 1"),
        (["/nowhere/tell"], "cannot be started"),
        (["sleep", "60"], "took longer than 0.3 s"),
        (["sh", "-c", "sleep 60 & wait"], "took longer than 0.3 s"),
        (["true"], None),  # reads nothing of its input
    ],
)
def test_what_a_command_may_do_wrong(tmp_path: Path, command: list[str], says: str | None) -> None:
    timeout_s = 0.3 if says and "took longer" in says else 20
    courier = Courier(configured(tmp_path, command=command, timeout_s=timeout_s), now=Clock())
    courier(replace(JOB, message="x" * 200_000))  # more than a pipe holds
    with capture_logs() as lines:
        wait = courier.step()
    assert wait == (5.0 if says else None)
    if says:
        assert says in lines[0]["error"]


def test_a_silent_webhook_costs_a_timeout(receiver: Receiver) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        with pytest.raises(DeliveryFailed, match=r"no (answer|connection)"):
            post(f"http://127.0.0.1:{mute.getsockname()[1]}/?token=s3cret", b"{}", "id", 0.2)
        taken = mute.getsockname()[1]
    with pytest.raises(DeliveryFailed, match="no connection") as caught:
        post(f"http://127.0.0.1:{taken}/?token=s3cret", b"{}", "id", 20)
    assert "s3cret" not in str(caught.value)


def test_a_handshake_that_the_socket_times_out_is_no_answer() -> None:
    """The socket's timeout may end a delivery before its deadline does; both give the same message."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        opened: list[socket.socket] = []
        with pytest.raises(DeliveryFailed, match=r"no answer within 0\.2 s"):
            exchange(f"https://127.0.0.1:{silent.getsockname()[1]}/", b"{}", "id", 0.2, opened)
        for one in opened:
            one.close()


@pytest.mark.parametrize(
    ("scheme", "first", "drop"),
    [
        ("http", b"HTTP/1.1 2", b"0"),
        ("http", b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        ("https", b"\x16\x03\x03\x40\0", b"\0"),
    ],
    ids=["status", "headers", "TLS handshake"],
)
def test_a_receiver_that_answers_drop_by_drop_is_not_waited_for(
    scheme: str, first: bytes, drop: bytes
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):  # until it is hung up on
                connection.sendall(first)
                while True:
                    connection.sendall(drop)
                    time.sleep(0.05)  # each comes before a timeout of one read

        dripping = threading.Thread(target=drip)
        dripping.start()
        began = time.monotonic()
        with pytest.raises(DeliveryFailed, match=r"no answer within 0\.5 s"):
            post(f"{scheme}://127.0.0.1:{server.getsockname()[1]}/", b"{}", "1", 0.5)
        assert time.monotonic() - began < 10
        dripping.join(20)
        assert not dripping.is_alive(), "it was hung up on"
    wait_for(lambda: "webhook" not in [thread.name for thread in threading.enumerate()], seconds=20)


def test_a_full_disk_loses_the_message_and_not_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    courier = Courier(configured(tmp_path, command=["true"]))
    with capture_logs() as lines:
        courier(JOB)
    assert [line["event"] for line in lines] == ["hook_lost"]
    assert "No space left on device" in lines[0]["error"]
    assert courier.given_up == 1


def test_a_picture_that_is_held_again_is_another_event(tmp_path: Path) -> None:
    courier = Courier(configured(tmp_path, command=["true"]))
    held = replace(JOB, state=JobState.REVIEW, lease=1)
    for job in (held, held, replace(held, lease=2)):
        courier(job)
    ids = [json.loads(file.read_bytes())["payload"]["id"] for file in (tmp_path / "state/hooks").iterdir()]
    assert sorted(ids) == ["0123456789abcdef-7-review-1", "0123456789abcdef-7-review-2"]


def test_unreadable_and_orphaned_deliveries_are_logged(tmp_path: Path) -> None:
    courier = Courier(configured(tmp_path, command=["true"]))
    courier(JOB)
    (tmp_path / "state" / "hooks" / "bad.json").write_text("{")
    bare = Courier(configured(tmp_path))
    with capture_logs() as lines:
        bare.start()
        wait_for(lambda: bare.given_up == 1, seconds=10)
        bare.close()
    assert [line["event"] for line in lines] == ["hook_unreadable", "hook_given_up"]


def test_closing_ends_a_command_and_keeps_its_delivery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
    monkeypatch.chdir(tmp_path)
    settings = configured(tmp_path, command=[sys.executable, "-c", script], timeout_s=600)
    courier = Courier(settings)
    courier.start()
    courier(JOB)
    pid = int(wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), seconds=20))
    courier.configure(settings.hooks.model_copy(update={"timeout_s": 0.2}))
    courier.close()
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), seconds=10)
    (kept,) = waiting(tmp_path)
    assert json.loads(kept.read_bytes())["attempts"] == 0


@pytest.mark.parametrize(
    "url", ["https://u:pw@h.example:8443/services/T/B?token=x#f", "http://h.example:8443/a"]
)
def test_masked_shows_only_scheme_and_host(url: str) -> None:
    assert masked(url) == url.partition(":")[0] + "://h.example:8443/…"


def test_backoff_stops_growing(tmp_path: Path) -> None:
    clock = Clock()
    courier = Courier(configured(tmp_path, command=["false"], attempts=1000), now=clock)
    courier(JOB)
    waits = []
    with capture_logs():
        for _ in range(14):
            waits.append(courier.step() or 0.0)
            clock.now += waits[-1]
    assert waits[:3] == [5.0, 10.0, 20.0]
    assert waits[-1] == LONGEST_S
