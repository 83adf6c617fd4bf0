"""The daemon under a service manager: a real notify socket, real HTTP, a real command."""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from backfire.config import parse
from backfire.files.inbox import Hints
from backfire.service import systemd
from backfire.service.loop import Service
from tests.support.pictures import encoded, mask_picture, photo
from tests.support.sandbox import QUICK, Sandbox, wait_for


class Manager:
    """Receives datagrams as systemd does for `Type=notify`, and keeps their lines in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.said: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))

    def hear(self) -> list[str]:
        try:
            while True:
                self.said += self._socket.recv(65536).decode().split("\n")
        except BlockingIOError:
            return self.said

    def heard(self, line: str) -> bool:
        return any(said.startswith(line) for said in self.hear())

    def meanwhile(self, what: Callable[[], object], because: str) -> None:
        """Wait for something, and receive meanwhile, since a full queue of datagrams blocks the sender."""
        wait_for(lambda: self.hear() and what(), because=because)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    found = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(found.path))
    yield found
    found.close()


def test_systemd_and_operator(sandbox: Sandbox, manager: Manager) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    script = "import sys; open('told', 'a').write(sys.stdin.read() + '\\n')"
    sandbox.configure(
        verify=QUICK["verify"],
        protect={"iterations": 10_000, "margin_px": 32, "whole_px": 0},
        regions={"detectors": ["sidecar"], "none_found": "pass"},
        serve={"metrics": address},
        hooks={"command": [sys.executable, "-c", script]},
    )
    for number in range(3):
        sandbox.drop(encoded(photo(seed=number)), f"backlog-{number}.png")
    sandbox.drop(b"", "empty.png")
    process = sandbox.start()

    # READY comes before the backlog is worked, and then come heartbeats.
    wait_for(lambda: manager.heard("WATCHDOG=1"), seconds=30, because="a heartbeat")
    assert manager.said[:2] == ["READY=1", "STATUS=watching"]
    assert '"event": "job"' not in sandbox.log().partition('"ready"')[0]

    told = sandbox.base / "told"
    manager.meanwhile(lambda: told.exists() and told.read_text().count("\n") >= 4, because="four hooks")
    payloads = [json.loads(line) for line in told.read_text().splitlines()]
    assert sorted((payload["event"], payload["file"]) for payload in payloads) == [
        ("failed", "empty.png"),
        *(("published", f"backlog-{number}.png") for number in range(3)),
    ]
    assert len({payload["id"] for payload in payloads}) == 4
    manager.meanwhile(lambda: not list((sandbox.state / "hooks").iterdir()), because="them to be done with")

    def page(name: str) -> str:
        with urllib.request.urlopen(f"http://{address}/{name}", timeout=10) as answer:
            return str(answer.read().decode())

    archived = 'jobs_total{state="archived",verdict="unprotected"} 3.0'
    manager.meanwhile(lambda: archived in page("metrics"), because="three to be counted")
    assert 'failures_total{code="empty"} 1.0' in page("metrics")
    assert json.loads(page("healthz"))["status"] == "ok"

    # A job that would take hours: stopping asks for time, gives the job back, and ends well.
    sandbox.drop(encoded(mask_picture()), "long.mask.png")
    sandbox.drop(encoded(photo(seed=9)), "long.png")
    wait_for(lambda: manager.heard("STATUS=working long.png"), because="the long job to run")
    before = len(manager.hear())
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, sandbox.log()
    last = manager.hear()[before:]
    assert "STOPPING=1" in last
    (extension,) = [line for line in last if line.startswith("EXTEND_TIMEOUT_USEC=")]
    assert int(extension.partition("=")[2]) > 1_000_000
    assert (sandbox.inbox / "long.png").is_file()


def test_a_manager_that_does_not_listen_is_not_waited_for(manager: Manager) -> None:
    room = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text()) + 1
    for number in range(room + 20):
        systemd.notify(f"STATUS={number}", patience_s=0.02)
    began = time.process_time()
    systemd.notify("WATCHDOG=1", patience_s=1)
    assert time.process_time() - began < 0.5, "the loop waits instead of spinning"
    heard = manager.hear()
    assert heard == [f"STATUS={number}" for number in range(len(heard))], "those that fitted into the queue"
    assert 0 < len(heard) <= room
    systemd.notify("READY=1")
    assert manager.hear()[-1] == "READY=1", "later messages arrive once it listens again"


def test_the_watchdog_is_fed_only_while_scanner_and_worker_move(tmp_path: Path, manager: Manager) -> None:
    now = 1000.0
    settings = parse({"folders": {"inbox": "inbox"}}, base=tmp_path)
    with (
        closing(Service(settings, monotonic=lambda: now)) as service,
        closing(Hints(settings.folders.inbox, "polling", threading.Event())) as hints,
    ):

        def fed() -> bool:
            manager.hear()
            manager.said.clear()
            service.heartbeat.beat(hints)
            assert manager.heard("STATUS=")
            return manager.heard("WATCHDOG=1")

        service.intake.step()
        assert fed()
        now += 2 * settings.watch.rescan_s + 61  # the loop has a heartbeat, but there was no scan
        with capture_logs() as lines:
            assert not fed()
        assert lines[0]["event"] == "heartbeat_missed"
        service.intake.step()
        now += 3
        assert fed()
