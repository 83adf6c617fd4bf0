"""Whether a daemon works in a folder, as other processes find out."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from backfire.cli.commands import app
from backfire.config import load
from backfire.errors import ConfigError
from backfire.service import preflight
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
    with pytest.raises(ConfigError, match="another backfire daemon"):
        preflight.lock(tmp_path / "lock", patience_s=0)
    os.close(lock)
