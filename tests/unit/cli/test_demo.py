"""What `backfire demo` says of a run that was stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from backfire import log
from backfire.cli import serve
from backfire.cli.commands import app
from backfire.errors import ConfigError
from backfire.service.loop import Summary


def test_a_stopped_demo_names_no_sheets_and_the_next_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "show me"
    monkeypatch.setattr(serve, "serve", lambda *_, **__: Summary(left=1))
    monkeypatch.setattr(log, "setup", lambda **_: None)
    stopped = CliRunner().invoke(app, ["demo", str(folder)])
    assert "reports: nothing" in stopped.output
    assert "sheet.jpg" not in stopped.output
    again = CliRunner().invoke(app, ["demo", str(folder)])
    assert isinstance(again.exception, ConfigError)
    assert f"to go on with one that was stopped: backfire once -c '{folder}/config.yaml'" in str(
        again.exception
    )
