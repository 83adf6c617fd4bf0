"""Whether a daemon works in a folder, as other processes find out, and how one ends that cannot start."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from backfire.cli import commands
from backfire.cli.commands import app
from backfire.config import load
from backfire.errors import UnavailableError
from backfire.service import preflight
from backfire.service.inbox import Inbox
from backfire.service.loop import Service
from backfire.service.store.store import Store


def test_a_daemon_that_ended_is_not_said_to_run(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("folders: {inbox: inbox}")
    folders = load(config).folders
    with Store(folders.database) as store:

        def runs(last_heartbeat: float) -> bool:
            store.set_fact("daemon", {"pid": 1, "working": None}, at=last_heartbeat)
            told = CliRunner().invoke(app, ["status", "--json", "-c", str(config)], catch_exceptions=False)
            running: bool = json.loads(told.stdout)["running"]
            return running

        assert runs(time.time()), "there is no lock to ask, and the heartbeat is recent"
        assert not runs(time.time() - 3600)
        lock = preflight.lock(folders.state / "lock")
        assert lock is not None
        assert runs(time.time() - 3600), "it holds its lock, though a long copy delays its heartbeat"
        os.close(lock)
        assert not runs(time.time()), "as after SIGKILL"


def test_asking_whether_a_daemon_runs_keeps_none_from_starting(tmp_path: Path) -> None:
    held = preflight.lock(tmp_path / "lock")
    assert held is not None
    letting_go = threading.Timer(0.1, os.close, [held])
    letting_go.start()
    lock = preflight.lock(tmp_path / "lock", patience_s=30)
    letting_go.join()
    assert lock is not None
    with pytest.raises(UnavailableError, match="another backfire daemon"):
        preflight.lock(tmp_path / "lock", patience_s=0)
    os.close(lock)


def test_once_says_that_the_inbox_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("folders: {inbox: inbox}")
    monkeypatch.setattr(sys, "argv", ["backfire", "once", "--json", "-c", str(config)])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    real = Inbox.require_mount

    def gone(inbox: Inbox) -> None:
        (tmp_path / "inbox").rmdir()
        real(inbox)

    monkeypatch.setattr(Inbox, "require_mount", gone)
    with pytest.raises(SystemExit) as ended:
        commands.run()
    assert ended.value.code == os.EX_TEMPFAIL
    told = capsys.readouterr()
    assert "mount its share or make the folder again" in told.err
    assert "mount its share" in json.loads(told.out)["trouble"]


def test_what_time_may_mend_has_an_exit_status_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd starts the daemon again, unless its configuration is bad."""
    config = tmp_path / "config.yaml"
    monkeypatch.setattr(sys, "argv", ["backfire", "run", "-c", str(config)])
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def status() -> object:
        with pytest.raises(SystemExit) as ended:
            commands.run()
        return ended.value.code

    config.write_text("folders: {inbox: inbox, otbox: outbox}")
    assert status() == 2
    config.write_text("folders: {inbox: inbox}")
    (tmp_path / "archive").write_bytes(b"where a mount point belongs")
    assert status() == os.EX_TEMPFAIL
    (tmp_path / "archive").unlink()
    held = preflight.lock(tmp_path / "inbox")
    assert held is not None
    assert status() == os.EX_TEMPFAIL
    os.close(held)

    def gone(service: Service, *, until_idle: bool) -> None:
        (tmp_path / "spool" / "7").iterdir().__next__()

    monkeypatch.setattr(Service, "run", gone)
    assert status() == os.EX_TEMPFAIL
    unit = (Path(__file__).parents[3] / "systemd" / "backfire.service").read_text().splitlines()
    assert "RestartPreventExitStatus=2" in unit
    assert "Restart=on-failure" in unit


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("name", ["inbox", "archive", "state"])
def test_a_folder_that_cannot_be_looked_for_may_be_there_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("folders: {inbox: inbox}")
    settings = load(config)
    preflight.make_folders(settings)
    Store(settings.folders.database).close()
    real = Path.exists

    def exists(path: Path) -> bool:
        if tmp_path / name in (path, path.parent):
            raise OSError(number, os.strerror(number))
        return real(path)

    monkeypatch.setattr(Path, "exists", exists)
    with pytest.raises(UnavailableError, match=r"cannot be looked for .*check its disk or network share"):
        preflight.make_folders(settings)


def test_a_folder_that_cannot_be_locked_for_a_stale_share_may_be_there_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_dir(_: Path) -> bool:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Path, "is_dir", is_dir)
    with pytest.raises(UnavailableError, match="cannot be opened"):
        preflight.lock(tmp_path)
