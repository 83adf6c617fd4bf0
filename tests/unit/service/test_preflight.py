"""Who is at work in a folder, seen from outside."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from backfire.cli.jobs import _is_alive
from backfire.config import parse
from backfire.errors import ConfigError
from backfire.service import preflight


def test_a_daemon_that_ended_is_not_said_to_run(tmp_path: Path) -> None:
    settings = parse({"folders": {"inbox": "inbox"}}, base=tmp_path)
    settings.folders.state.mkdir()
    heard = ({"pid": 1}, time.time())
    assert _is_alive(settings.folders.state, heard), "no lock to ask: it was heard of just now"
    lock = preflight.lock(settings.folders.state / "lock")
    assert lock is not None
    long_ago = ({"pid": 1}, time.time() - 3600)
    assert _is_alive(settings.folders.state, long_ago), "a long copy keeps it from saying so"
    os.close(lock)
    assert not _is_alive(settings.folders.state, heard), "as after SIGKILL"


def test_to_look_whether_it_runs_keeps_no_daemon_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "TRY_S", 30)
    held = preflight.lock(tmp_path / "lock")
    assert held is not None
    letting_go = threading.Timer(0.1, os.close, [held])
    letting_go.start()
    lock = preflight.lock(tmp_path / "lock")
    letting_go.join()
    assert lock is not None
    monkeypatch.setattr(preflight, "TRY_S", 0)
    with pytest.raises(ConfigError, match="another backfire daemon"):
        preflight.lock(tmp_path / "lock")
    os.close(lock)
