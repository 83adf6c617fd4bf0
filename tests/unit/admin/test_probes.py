"""The probes of `backfire check`, each on sound surroundings and on the fault that it looks for."""

from __future__ import annotations

import errno
import os
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backfire.admin import probes
from backfire.admin.probes import Check
from backfire.config import Settings, parse
from backfire.service.endpoint import Endpoint
from backfire.service.preflight import lock


def test_a_sound_folder_is_left_as_it_was(tmp_path: Path) -> None:
    assert probes.write(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("function", "code", "doing", "remedy"),
    [
        ("open", errno.EROFS, "make a file", "ReadWritePaths="),
        ("open", errno.EACCES, "make a file", "chown or chmod"),
        ("write", errno.ENOSPC, "write", "free some space"),
        ("fsync", errno.EDQUOT, "write", "quota"),
        ("rename", errno.EPERM, "rename", "chown or chmod"),
        ("listdir", errno.EACCES, "list", "chown or chmod"),
    ],
)
def test_each_thing_the_daemon_does_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, code: int, doing: str, remedy: str
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, function, refuses)
        found = probes.write(tmp_path)
    assert found is not None
    assert found.found.startswith(doing)
    assert remedy in found.remedy
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_somebody_else(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    found = probes.write(tmp_path)
    tmp_path.chmod(0o755)
    assert found is not None


def test_a_file_servers_clock_that_is_off(tmp_path: Path) -> None:
    found = probes.write(tmp_path, now=lambda: time.time() + 300)
    assert found is not None
    assert "-300 s off" in found.found


def limits(tmp_path: Path, watches: int, instances: int) -> Path:
    for name, value in (("user_watches", watches), ("user_instances", instances), ("queued_events", 16384)):
        (tmp_path / f"max_{name}").write_text(f"{value}\n")
    return tmp_path


def test_inotify_limits(tmp_path: Path) -> None:
    assert all(finding.ok for finding in probes.inotify(limits(tmp_path, 100_000, 128)))
    found = list(probes.inotify(limits(tmp_path, 100, 4)))
    assert [finding.ok for finding in found] == [False, False, True]
    assert "sysctl fs.inotify.max_user_watches=" in found[0].remedy
    assert [finding.ok for finding in probes.inotify(tmp_path / "none")] == [True]


def test_a_clock_that_is_behind_the_times_of_files(tmp_path: Path) -> None:
    database = tmp_path / "backfire.sqlite"
    assert probes.clock(database).ok
    database.write_bytes(b"")
    os.utime(database, (4e9, 4e9))
    found = probes.clock(database)
    assert "the job database was written" in found.found
    assert "timedatectl" in found.remedy
    assert "installed" in probes.clock(tmp_path / "none", now=lambda: 0.0).found


def configured(tmp_path: Path, **sections: Any) -> Settings:
    return parse({"folders": {"inbox": "inbox"}, **sections}, base=tmp_path)


def test_nothing_is_probed_for_settings_that_are_not_set(tmp_path: Path) -> None:
    assert list(probes.surroundings(configured(tmp_path))) == []


@pytest.fixture
def taken() -> Iterator[str]:
    """The address of a server that ends every connection without an answer."""
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def only(findings: Iterator[Check]) -> Check:
    (finding,) = findings
    return finding


def test_the_metrics_address_is_free_or_somebody_elses(tmp_path: Path, taken: str) -> None:
    assert only(probes.surroundings(configured(tmp_path, serve={"metrics": "127.0.0.1:0"}))).ok
    found = only(probes.surroundings(configured(tmp_path, serve={"metrics": taken})))
    assert found.remedy == "name another port"


def test_the_running_daemon_may_have_the_metrics_address_and_no_other_one(tmp_path: Path) -> None:
    pages: dict[str, Callable[[], tuple[int, str, bytes]]] = {"/healthz": lambda: (503, "text/plain", b"")}
    endpoint = Endpoint(("127.0.0.1", 0), pages)
    endpoint.start()
    address = endpoint.url.removeprefix("http://")
    settings = configured(tmp_path, serve={"metrics": address})
    in_use = Check("metrics", f"{address} is in use", "name another port")
    assert only(probes.surroundings(settings)) == in_use  # that of another configuration
    settings.folders.state.mkdir(exist_ok=True)
    held = lock(settings.folders.state / "lock")
    assert held is not None
    found = only(probes.surroundings(settings))
    os.close(held)
    assert only(probes.surroundings(settings)) == in_use
    assert only(probes.surroundings(configured(tmp_path, serve={"page": address}))).remedy
    endpoint.close()
    assert found.ok
    assert "running daemon" in found.found


def test_the_page_s_address_is_free_or_its_own_or_somebody_elses(tmp_path: Path, taken: str) -> None:
    def found(address: str) -> Check:
        return only(probes.surroundings(configured(tmp_path, serve={"page": address})))

    assert found("127.0.0.1:0").ok
    assert found(taken) == Check("page", f"{taken} is in use", "name another port")
    endpoint = Endpoint(("127.0.0.1", 0), {})
    endpoint.start()
    assert "answered by the running page" in found(endpoint.url.removeprefix("http://")).found
    endpoint.close()


def test_the_page_s_socket_can_be_made_or_is_there(tmp_path: Path) -> None:
    def found(path: Path) -> Check:
        return only(probes.surroundings(configured(tmp_path, serve={"page": f"unix:{path}"})))

    path = tmp_path / "page.sock"
    assert found(path) == Check("page", f"{path} can be made")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        assert found(path) == Check("page", f"{path} is answered by the running page")
    assert found(path).ok, "the page takes the place of a socket that nobody listens at"
    path.unlink()
    path.write_bytes(b"")
    assert found(path).remedy == "move it away, or name another path"
    absent = found(tmp_path / "no" / "page.sock")
    assert absent.ok, "the page may run in a container of its own, which alone has the folder"
    assert absent.found.startswith(f"{tmp_path / 'no'} is not here; ")
    assert found(path / "page.sock").remedy.endswith(f"search {path}, or name another path"), "it is a file"
    assert found(tmp_path / ("x" * 200)).remedy == "name a shorter path"


def test_a_folder_of_the_page_s_socket_that_may_not_be_searched_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(path: Path, **_: object) -> os.stat_result:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))

    path = tmp_path / "shut" / "page.sock"
    settings = configured(tmp_path, serve={"page": f"unix:{path}"})
    monkeypatch.setattr(Path, "stat", refuses)
    found = only(probes.surroundings(settings))
    assert (found.ok, found.found) == (False, f"{path}: Permission denied")
    assert found.remedy == f"let uid {os.geteuid()} search {path.parent}, or name another path"


@pytest.mark.parametrize(("program", "sound"), [("true", True), ("/nowhere/tell", False)])
def test_the_hook_command(tmp_path: Path, program: str, sound: bool) -> None:
    assert only(probes.surroundings(configured(tmp_path, hooks={"command": [program]}))).ok == sound


def test_the_webhook_is_looked_up_and_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = configured(tmp_path, hooks={"webhook": "https://u:hunter2@h.example/hunter2?t=hunter2"})

    def lookup(host: str, port: int, **_: object) -> list[object]:
        assert (host, port) == ("h.example", 443)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    sound = only(probes.surroundings(settings))

    def refuses(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuses)
    bad = only(probes.surroundings(settings))
    assert (sound.ok, bad.ok) == (True, False)
    assert "hunter2" not in repr((sound, bad))
